"""The function that every worker runs: open the data, build the model, train it, evaluate the best checkpoint."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster import preemption
from cluster.cores import usable_cores
from cluster.failures import Stopped
from models.contract import Baseline, SequenceModel, System
from models.errors import UserError
from retrieval.disk import told_of_disk
from retrieval.files import sole_writer, write_json, write_text
from trainer.batches.loader import Loaded
from trainer.config import recipe
from trainer.config.identity import identity
from trainer.config.schema import RunConfig, parse
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import SPLITS, Split
from trainer.evaluation.catalogue_index import CatalogueIndex
from trainer.evaluation.evaluate import Evaluation, choose_inference, evaluate
from trainer.process import keep_freed_memory, peak_memory_mib, world
from trainer.remote_runs import storage_of
from trainer.tracking import MetricsLog, Mirror, start_mirror
from trainer.training.build import as_tested, build_engine, build_model, choose_device, load_data, load_weights
from trainer.training.checkpoint import CheckpointStore
from trainer.training.checkpoint_reading import Checkpoint
from trainer.training.engine import NonFiniteError
from trainer.training.groups import parameter_count
from trainer.training.loop import EpochDone, Loop
from trainer.training.memory import check_tables
from trainer.training.reporting import EpochReporter, workers_in_words
from trainer.training.resuming import check_resumable
from trainer.training.weights_only import keep_weights_only

_MIRROR_SECONDS, _MIRROR_SECONDS_STOPPED = 60.0, 3.0


def train_worker(settings: dict[str, Any], epoch_done: EpochDone | None = None) -> None:
    """Train one run on this worker. settings: `config` (plain values of a RunConfig), `run_dir`, `command`, which heads
    config.yaml, `device` ("cpu" or "cuda") where Ray has placed the worker, else engine.device decides; `test`: False
    leaves the test targets unread, for a run that may not be chosen; `mirror`: False where another process mirrors the
    run to MLflow. epoch_done: see `Loop`.

    Continues from the last checkpoint in the run folder if there is one. So Ray Train can simply call it again after
    a worker died, and `--resume` needs nothing else.
    """
    config, run_dir = parse(settings["config"]), Path(settings["run_dir"])
    rank, size = world()
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    torch.set_num_threads(config.cluster.threads or max(1, usable_cores() // neighbours))
    # told here, as a user's mistake: workers that fail by one are not started again
    with told_of_disk(run_dir), sole_writer(run_dir) if rank == 0 else contextlib.nullcontext():
        device = choose_device(settings.get("device") or config.engine.device)
        splits = SPLITS if settings.get("test", True) else SPLITS[:1]
        mirrored = config.tracking.mlflow and settings.get("mirror", True)
        _train_run(_Order(config, run_dir, settings["command"], splits, mirrored, epoch_done), rank, device)
        if rank == 0 and (storage := storage_of(run_dir)):
            storage.push()


@dataclass(frozen=True)
class _Order:
    """What to train, and where. splits: to be evaluated at the end; validation is among them. mirrored: by
    this process."""

    config: RunConfig
    run_dir: Path
    command: str
    splits: Sequence[Split]
    mirrored: bool
    epoch_done: EpochDone | None


def _train_run(order: _Order, rank: int, device: torch.device) -> None:
    config, run_dir = order.config, order.run_dir
    if device.type == "cpu":
        keep_freed_memory()
    dataset = Dataset.open(config.data.path)
    if rank == 0:
        _verify(dataset)
    loaded = load_data(dataset, config, device)
    check_tables(config, dataset.manifest.items + 1, dataset.manifest.users, device)
    model = build_model(config, loaded)
    reporter = EpochReporter(rank == 0, config.train.epochs)
    checkpoint = _agree_on_checkpoint(CheckpointStore(run_dir / "checkpoints", share=model.share))
    if checkpoint is not None:
        changed = check_resumable(checkpoint, config, dataset.manifest, run_dir)
        if changed:
            reporter.warn(f"the run was begun with {changed}; what follows may differ")
    if rank == 0:  # this process is the only writer now, and the run may continue with this configuration
        write_text(run_dir / "config.yaml", recipe.dump(config, order.command))
    if isinstance(model, Baseline):
        _announce(reporter, config, loaded, model, "fitted, nothing is trained")
        with _tracked(order, checkpoint, rank) as log:
            _fit(config, loaded, run_dir)
            _finish(Trained(model, 0, 0, "none"), order, loaded, log, reporter)
        return
    if checkpoint is not None:
        load_weights(model, checkpoint.tensors["model"])
    engine = build_engine(model, config, device)
    loop = Loop(config, loaded, engine, run_dir, reporter, order.epoch_done)
    if checkpoint is not None:
        loop.restore(checkpoint)
    workers = workers_in_words(loop.size, config.step_rows, divided=model.share is not None)
    how = f"{parameter_count(model):,} parameters; {workers}, {engine.name} engine, {config.engine.precision}"
    _announce(reporter, config, loaded, model, how)
    if loop.size < config.cluster.workers:
        reporter.warn(
            f"{loop.size} of {config.cluster.workers} workers: nodes are missing (cluster.workers_at_least is "
            f"{config.cluster.workers_at_least}); steps are the same, and take longer"
        )
    if checkpoint is not None:
        reporter.say(f"going on from step {checkpoint.step} (epoch {loop.position.epoch})")
    with _tracked(order, checkpoint, rank) as log:
        _train(loop)
        weights, epoch, steps = loop.best().tensors["model"], loop.stopping.best_epoch, loop.position.total_steps
        name = engine.name
        del loop, engine, model  # the optimizer and the graphs of steps: the best model takes their place
        gc.collect()
        best = build_model(config, loaded)
        assert isinstance(best, SequenceModel)
        load_weights(best, weights)
        _finish(Trained(best, epoch, steps, name), order, loaded, log, reporter)


#: files as they were when this process checked them: a process that serves many trials of a study reads them once
_VERIFIED: set[tuple[tuple[str, int, int], ...]] = set()


def _verify(dataset: Dataset) -> None:
    """`Dataset.verify`, unless this process has done it and no file has changed since."""
    paths = [path for name in dataset.manifest.files if (path := dataset.root / name).exists()]
    seen = tuple((str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in paths)
    if seen not in _VERIFIED or len(paths) < len(dataset.manifest.files):
        dataset.verify()
        _VERIFIED.add(seen)


@dataclass(frozen=True)
class Trained:
    """The result of training: the best model and its epoch, the number of steps in all, and the engine's name."""

    model: SequenceModel | Baseline
    epoch: int
    steps: int
    engine: str


def _fit(config: RunConfig, loaded: Loaded, run_dir: Path) -> None:
    """Write the checkpoint of a baseline, which was fitted when it was built. It records the configuration and data,
    so that the run can be opened like any other.
    """
    if world()[0] != 0:
        return
    state = {
        "position": {}, "stopping": {"best_step": 0, "best_epoch": 0},
        **identity(config, loaded.dataset.manifest),
    }  # fmt: skip
    CheckpointStore(run_dir / "checkpoints").commit(0, {"model": {}, "optimizer": {}}, state, keep=[0])


def _train(loop: Loop) -> None:
    try:
        with preemption.held():
            loop.run()
    except NonFiniteError:
        raise UserError(
            f"a loss or gradient is not finite in epoch {loop.position.epoch}; the weights were not updated. "
            f"Its training rows are in {loop.run_dir / 'nonfinite.json'}; "
            "try a lower train.learning_rate, or train.clip_norm=1"
        ) from None


def _agree_on_checkpoint(store: CheckpointStore) -> Checkpoint | None:
    """The newest undamaged checkpoint whose best one is undamaged too; the same one on every rank."""
    rank, size = world()
    latest: Checkpoint | None = None
    chosen: list[Any] = [None, None]  # the step, or what every rank raises
    if rank == 0:
        try:
            found = store.latest_and_best()
            latest = found[0] if found else None
            chosen = [latest.step if latest else None, None]
        except UserError as error:
            chosen = [None, str(error)]
    if size > 1:
        dist.broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise UserError(chosen[1])
    return latest if rank == 0 or chosen[0] is None else store.load(chosen[0])


def _announce(reporter: EpochReporter, config: RunConfig, loaded: Loaded, model: System, how: str) -> None:
    manifest = loaded.dataset.manifest
    reporter.say(
        f"{config.model.name} on {manifest.users:,} users, {manifest.items:,} items, {manifest.train_rows:,} training "
        f"rows ({loaded.device.type}, data {loaded.placement}): {how}"
    )
    for note in model.notes:
        reporter.say(f"note: {note}")


@contextlib.contextmanager
def _tracked(order: _Order, checkpoint: Checkpoint | None, rank: int) -> Iterator[MetricsLog | None]:
    """Keep the metrics file and its MLflow mirror open during the run. Only rank 0 has them; others get None."""
    if rank != 0:
        yield None
        return
    run_dir, tracking = order.run_dir, order.config.tracking
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.rewind(checkpoint.step if checkpoint is not None else -1)
    mirror: Mirror | None = None
    if order.mirrored:
        mirror = start_mirror(run_dir, tracking.uri, tracking.experiment)
    status, wait_s = "FAILED", _MIRROR_SECONDS
    try:
        yield log
        status = "FINISHED"
    except Stopped:
        wait_s = _MIRROR_SECONDS_STOPPED  # the process is about to be killed; the mirror catches up after --resume
        raise
    finally:
        if mirror is not None:
            mirror.close(wait_s, "FINISHED" if status == "FINISHED" else "FAILED")


def _finish(trained: Trained, order: _Order, loaded: Loaded, log: MetricsLog | None, reporter: EpochReporter) -> None:
    """Evaluate the best model in every way of encoding users; report the way that is best on validation."""
    config, run_dir = order.config, order.run_dir
    evaluations, chosen = evaluate_choices(trained.model, loaded, config, order.splits)
    if log is None:
        return
    common = {
        "inference": chosen, "epoch": trained.epoch, "seed": config.seed, "engine": trained.engine,
        "identity": identity(config, loaded.dataset.manifest),
    }  # fmt: skip
    if loaded.dataset.manifest.truth:
        common["truth"] = loaded.dataset.manifest.truth
    for split, choices in evaluations.items():
        name = {"validation": "valid"}.get(split, split)
        report = choices[chosen].report()
        every = {way: evaluation.metrics() for way, evaluation in choices.items()}
        choices[chosen].save(run_dir / f"ranks-{name}.npz")
        write_json(run_dir / f"{name}.json", {**report, **common, "choices": every})
    last, result = next((split, evaluations[split][chosen]) for split in reversed(order.splits))
    if last == "test":
        log.append("test", trained.epoch, trained.steps, _figures(result.report()))
    log.append("end", trained.epoch, trained.steps, {"peak_memory_mib": peak_memory_mib(loaded.device)})
    if not config.train.keep_optimizer:
        keep_weights_only(CheckpointStore(run_dir / "checkpoints", share=trained.model.share))
    for doubt in trained.model.doubts(_last_epoch(log)):
        reporter.warn(doubt)
    shown = " ".join(f"{name} {value:.4f}" for name, value in result.metrics().items())
    reporter.say(f"{last} (epoch {trained.epoch}, {chosen}): {shown}")


def _last_epoch(log: MetricsLog) -> dict[str, float]:
    """The numbers of the last epoch that is logged: also after a resume that had only the test to do."""
    epochs = [line["metrics"] for line in log.lines() if line["event"] == "epoch"]
    return {name: value for name, value in (epochs or [{}])[-1].items() if isinstance(value, float)}


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report only its metrics: those of all users, and apart masked, warm and cold."""
    nested = {key: _figures(value) for key, value in report.items() if key in ("masked", "warm", "cold")}
    return {key: value for key, value in report.items() if "@" in key} | nested


def evaluate_choices(
    model: SequenceModel | Baseline, loaded: Loaded, config: RunConfig, splits: Sequence[Split] = SPLITS
) -> tuple[dict[Split, dict[str, Evaluation]], str]:
    """Evaluations by split and by way of encoding users, and the way that is best on validation. Collective.

    splits: validation is one of them, as it chooses the way.
    """
    if isinstance(model, SequenceModel):
        model.eval()
    results: dict[Split, dict[str, Evaluation]] = {split: {} for split in splits}
    indices = CatalogueIndex()  # the item vectors are the same in all
    with torch.no_grad():
        for split in splits:
            shown, data = as_tested(model, loaded, config, split)
            if shown is not model:
                indices = CatalogueIndex()
            for way in model.inference_choices:
                shown.inference = way
                results[split][way] = evaluate(shown, data, split, config.eval, with_lists=True, indices=indices)
    chosen = choose_inference({way: result.criterion for way, result in results["validation"].items()})
    model.inference = chosen
    return results, chosen
