"""Train one system, or several to compare, on a prepared dataset.

Example: mealrec train --recipe demo --data data/demo --model sasrec,tedrec,mealrec --name first
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from cluster import console, preemption
from cluster.console import Verbosity
from cluster.ray_train import fit
from models.errors import UserError
from models.systems import check_content
from retrieval.files import sole_writer
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import Manifest, load_manifest
from trainer.data.storage import is_url
from trainer.durations import in_words
from trainer.evaluation.report import metric_table, read_report, recall_warnings
from trainer.local_path import local_path
from trainer.tracking import where_runs_are, write_group
from trainer.tracking.metrics_log import read_lines
from trainer.training.checkpoint_files import read_progress, require_nothing_to_do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec train`, and of `python trainer/run.py` in a Ray job."""
    parser.add_argument("--recipe", required=True, help=f"{', '.join(recipe.names())}, or the path of a .yaml file")
    parser.add_argument("--data", help="prepared dataset, a folder or URL (default: the recipe's data.path)")
    parser.add_argument("--name", required=True, help="name of the run; results go to RUNS_DIR/NAME")
    parser.add_argument("--model", help="system to train instead of the recipe's; for several systems, separated by "
                        "commas, the runs are called NAME-SYSTEM and share one table")  # fmt: skip
    parser.add_argument("--seeds", help="train each system once per seed, e.g. 2020,2021,2022; the runs are called "
                        "NAME-sSEED, and `mealrec compare` shows their mean and standard deviation")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="override one setting; may be repeated")  # fmt: skip
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="continue the run of this name")


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked without torch, then train the systems one after the other."""
    systems = args.model.split(",") if args.model else [None]
    if len(set(systems)) < len(systems) or "" in systems:
        raise UserError(f"--model {args.model}: name each system once, separated by commas")
    seeds = _seeds(args.seeds)
    several = len(systems) * len(seeds) > 1
    planned = []
    for system, seed in itertools.product(systems, seeds):
        settings = args.settings if seed is None else [*args.settings, f"seed={seed}"]
        config = recipe.load(args.recipe, system, settings, args.data)
        name = f"{args.name}-{config.model.name}" if len(systems) > 1 else args.name
        name += "" if seed is None else f"-s{seed}"
        planned.append((name, _check(config), args.runs_dir.absolute() / name))
    for name, config, run_dir in planned:
        _check_name(name, run_dir, args.resume)
        _check_more_epochs(config, run_dir)
    if several:
        write_group(args.name, [run_dir for _, _, run_dir in planned])
    with preemption.listening():
        for name, config, run_dir in planned:
            if several:
                console.say(f"\n== {name}")
            _train(name, config, run_dir)
    reports = {name: read_report(run_dir / "test.json") for name, _, run_dir in planned}
    print(metric_table(reports, planned[0][1].eval.choice.keys), flush=True)
    for warning in recall_warnings(reports):
        console.warn(warning)
    _, config, run_dir = planned[-1]
    if config.tracking.mlflow and (page := where_runs_are(run_dir, config.tracking.uri, config.tracking.experiment)):
        console.say(f"\nthe runs in MLflow\n{page}", Verbosity.BRIEF)
    return 0


def _seeds(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise UserError(f"--seeds {text}: name each seed once, as whole numbers separated by commas")
    return [int(seed) for seed in seeds]


def _check(config: RunConfig) -> RunConfig:
    """Refuse what the workers would refuse, before any of them starts; return the config with absolute paths."""
    if not config.data.path:
        raise UserError("no dataset: give --data (a folder that `mealrec prepare` made)")
    config.engine.choose()
    if config.eval.index != "exact" and not config.model.options.trained:
        raise UserError(f"eval.index={config.eval.index}: {config.model.name} has no item vectors to index; use exact")
    if is_url(config.data.path):
        return config
    path = Path(config.data.path).absolute()
    _check_content(config, load_manifest(path))
    return config.model_copy(update={"data": config.data.model_copy(update={"path": str(path)})})


def _check_content(config: RunConfig, manifest: Manifest) -> None:
    if manifest.train_rows == 0:
        raise UserError(
            f"{config.data.path} has no training rows: every user has only 3 items; prepare more data, or with a lower "
            "`mealrec prepare --k-core`"
        )
    shapes: dict[str, tuple[int, ...]] = {field: info.shape for field, info in manifest.content.items()}
    check_content(config.model.name, config.model.options, shapes)


def _check_name(name: str, run_dir: Path, resume: bool) -> None:
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"--name {name!r} is not a plain folder name")
    started = (run_dir / "metrics.jsonl").exists()  # a refused start leaves at most the names below
    left = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    foreign = run_dir.exists() and "config.yaml" not in left and not left <= {".lock", "ray", "group.json"}
    if (started or foreign) and not resume:
        raise UserError(f"run {name!r} exists in {run_dir.parent}: use --resume to continue it, or another --name")
    if resume and not (run_dir / "config.yaml").exists():
        raise UserError(f"nothing to resume: there is no run in {run_dir}")
    if resume:
        recipe.load(str(run_dir / "config.yaml"), None, [], None)  # refuses a file that an earlier version wrote


def _check_more_epochs(config: RunConfig, run_dir: Path) -> None:
    """Refuse a run that has finished without its optimizer's state and would train on; workers would refuse it too."""
    progress = read_progress(run_dir / "checkpoints")
    if progress is not None and not progress.can_go_on:
        require_nothing_to_do(progress.state, config.train.epochs, config.train.patience, run_dir)


def _train(name: str, config: RunConfig, run_dir: Path) -> None:
    import torch  # only after all checks, so that mistakes are reported at once

    from trainer.training.worker import train_worker

    started = time.perf_counter()
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole_writer(run_dir):  # a second command is refused before its workers start; the first worker writes
        pass
    given = sys.argv[1:] if sys.argv[1:2] == ["train"] else ["train", *sys.argv[1:]]  # trainer/run.py adds the verb
    settings: dict[str, Any] = {
        "config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": shlex.join(["mealrec", *given]),
    }  # fmt: skip
    # fitting a baseline takes seconds, less than the start of workers
    if config.cluster.launcher == "inline" or not config.model.options.trained:
        train_worker(settings)
    else:
        gpus = config.engine.device != "cpu" and torch.cuda.is_available()
        fit(
            train_worker, settings, name="ray", storage=run_dir, workers=config.cluster.workers, gpus=gpus,
            cpus_per_worker=1, max_failures=config.cluster.max_failures, folders=_local(config),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    if console.shows(Verbosity.NORMAL):
        console.say(f"{name}: done in {seconds:.0f} s, results in {run_dir}")
    else:
        console.say(f"{name}: {summary(run_dir, config)}, {in_words(seconds)}", Verbosity.BRIEF)


def summary(run_dir: Path, config: RunConfig) -> str:
    """A finished run in a few words: its epochs, and its first NDCG on the test targets (else its first metric)."""
    report, keys = read_report(run_dir / "test.json"), config.eval.choice.keys
    key = next((each for each in keys if each.startswith("NDCG")), keys[0])
    epochs = sum(line["event"] == "epoch" for line in read_lines(run_dir / "metrics.jsonl", 0)[0])
    how = f"best epoch {report['epoch']} of {epochs}" if epochs else "fitted"
    return f"test {key} {report[key]:.4f} ({how})"


def _local(config: RunConfig) -> list[Path]:
    return [] if is_url(config.data.path) else [Path(config.data.path)]
