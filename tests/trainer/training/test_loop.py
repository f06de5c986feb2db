"""The guarantees of the loop on real runs: a run that is killed or fails at any point ends like an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from models.errors import UserError
from retrieval.files import sole_writer
from tests.helpers.run_worker import run_command, run_process
from tests.helpers.tiny_runs import MODELS, OPTIONS, RUN, fork_server, make_config, make_dataset
from trainer.cli import main
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.data.synthetic.generate import generate
from trainer.training.build import import_deepspeed_engine
from trainer.training.checkpoint import CheckpointStore
from trainer.training.engine import Engine, TorchEngine
from trainer.training.runs import open_run
from trainer.training.stopping import EarlyStopping
from trainer.training.worker import train_worker

STEPS = 32  # steps of the undisturbed run: 4 epochs of 8
SETTINGS = (
    "train.epochs=4", "train.batch_size=30", "train.checkpoint_every=3", "train.patience=9", "train.keep_optimizer=true"
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _leave_no_process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():  # DeepSpeed made one in this process
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("loop") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run_process(write_config(make_config(data, "sasrec", *SETTINGS), out), out) == 0
    return out


def write_config(config: RunConfig, run_dir: Path) -> RunConfig:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(recipe.dump(config, "mealrec train"))
    return config


def train(config: RunConfig, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    train_worker({"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    timed = {"rows_per_second", "train_seconds", "valid_seconds", "peak_memory_mib"}
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["metrics"] = {key: value for key, value in row["metrics"].items() if key not in timed}
        del row["time"]
    return rows


def assert_same_end(a: Path, b: Path) -> None:
    """Compare weights, moments and state of the last checkpoint, metrics and ranks, bit for bit."""
    one, two = CheckpointStore(a / "checkpoints").latest(), CheckpointStore(b / "checkpoints").latest()
    assert one is not None
    assert two is not None
    assert (one.step, one.state) == (two.step, two.state)
    assert one.tensors.keys() == two.tensors.keys()
    for group in one.tensors:
        assert one.tensors[group].keys() == two.tensors[group].keys()
        assert all(torch.equal(value, two.tensors[group][name]) for name, value in one.tensors[group].items())
    assert lines(a) == lines(b)
    assert [row["epoch"] for row in lines(b) if row["event"] == "epoch"] == list(
        range(1, one.state["position"]["epoch"])
    )
    for name in ("test", "valid"):
        first, second = (np.load(run / f"ranks-{name}.npz", allow_pickle=False) for run in (a, b))
        assert all(np.array_equal(first[key], second[key]) for key in ("user", "target", "rank", "rank_masked", "cold"))
        reports = [{**json.loads((run / f"{name}.json").read_text()), "seconds": 0} for run in (a, b)]
        assert reports[0] == reports[1]


class Fault(RuntimeError):
    """The injected error."""


def run_failing(config: RunConfig, run_dir: Path, engine: type[Engine], total: int) -> int:
    """Fail once at every step, before or after its update, and resume each time; return the number of failures."""
    step, failed, done = engine.step, set[int](), 0

    def failing(self: Engine, batches: Any) -> Any:
        nonlocal done
        done += 1
        if done in failed:
            return step(self, batches)
        failed.add(done)
        if done % 2:
            step(self, batches)
        raise Fault

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "step", failing)
        for _ in range(total + 1):
            latest = CheckpointStore(run_dir / "checkpoints").latest()
            done = latest.step if latest else 0
            try:
                train(config, run_dir)
                break
            except Fault:
                continue
    return len(failed)


def test_a_failure_at_every_step_changes_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    config = make_config(data, "sasrec", *SETTINGS)
    assert run_failing(config, tmp_path / "run", TorchEngine, STEPS) == STEPS
    assert_same_end(whole, tmp_path / "run")


def test_a_failure_at_every_step_under_deepspeed(data: Path, tmp_path: Path) -> None:
    settings = (
        "train.batch_size=64", "train.checkpoint_every=2", "train.keep_optimizer=true", "engine.name=deepspeed",
        "engine.zero_stage=2",
    )  # fmt: skip
    config = make_config(data, "mealrec", *settings)
    train(config, tmp_path / "whole")
    assert run_failing(config, tmp_path / "run", import_deepspeed_engine(torch.device("cpu")), 8) == 8
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def test_kill_9_anywhere_changes_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL during saves, an evaluation, and before the last line; each time, resume to the end."""
    config, rng = make_config(data, "sasrec", *SETTINGS), random.Random(5)
    events = json.loads((whole / "events.json").read_text())
    assert events["step"] == STEPS
    kills = [(kind, rng.randint(1, events[kind])) for kind in ("save", "save", "evaluation")]
    for number, kill in enumerate([*kills, ("log", events["log"])]):
        run_dir = tmp_path / f"{number}"
        assert run_process(write_config(config, run_dir), run_dir, kill) == -signal.SIGKILL, kill
        assert run_process(config, run_dir) == 0, kill
        assert_same_end(whole, run_dir)


def test_killed_again_and_again(data: Path, whole: Path, tmp_path: Path) -> None:
    config, run_dir = make_config(data, "sasrec", *SETTINGS), tmp_path / "run"
    for kill in (("save", 9), ("step", 5), ("log", 1), ("save", 30), ("evaluation", 2), ("step", 2)):
        assert run_process(write_config(config, run_dir), run_dir, kill) == -signal.SIGKILL, kill
    assert run_process(config, run_dir) == 0
    assert_same_end(whole, run_dir)


def test_sigterm_commits_a_checkpoint_and_the_run_goes_on_as_undisturbed(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Anywhere: while data is read, at steps far from a checkpoint, in saves (the first: of config.yaml), in an
    evaluation, at the last step."""
    run_dir, settings = tmp_path / "run", [*MODELS["sasrec"], *RUN, *SETTINGS]
    command = ["train", "--recipe", "demo", "--model", "sasrec", "--data", str(data), "--name", "run",
               "--runs-dir", str(tmp_path), *(f"--set={setting}" for setting in settings)]  # fmt: skip
    stops: list[tuple[tuple[str, int], int]] = [
        (("step", 2), 2), (("load", 1), 2), (("step", 3), 5), (("step", 3), 8), (("save", 3), 8),
        (("save", 8), 8), (("save", 12), 11), (("evaluation", 1), 16),
        (("step", 16), STEPS), (("evaluation", 1), STEPS),
    ]  # fmt: skip
    for number, (stop, step) in enumerate(stops):
        code, told = run_command([*command, *(["--resume"] if number else [])], tmp_path / "output", stop)
        assert code == 75, told
        latest = CheckpointStore(run_dir / "checkpoints").latest()
        assert latest is not None
        assert latest.step == step, stop
        assert "the same command with --resume goes on" in told
        if stop[0] == "step":
            assert f"SIGTERM: the checkpoint of step {step} is on the disk" in told
    assert run_command([*command, "--resume"], tmp_path / "output")[0] == 0
    assert_same_end(whole, run_dir)


def test_a_streamed_run_resumes_in_the_middle_of_an_epoch(data: Path, tmp_path: Path) -> None:
    config = make_config(data, "sasrec", *SETTINGS, "data.loader=stream", "train.epochs=1")
    train(config, tmp_path / "whole")
    run_failing(config, tmp_path / "run", TorchEngine, STEPS)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_resumed_is_finished(data: Path, whole: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    train(make_config(data, "sasrec", *SETTINGS), again)
    assert_same_end(whole, again)


def test_a_finished_run_may_go_on_for_more_epochs(data: Path, whole: Path, tmp_path: Path) -> None:
    longer = make_config(data, "sasrec", *SETTINGS, "train.epochs=5")
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    train(longer, again)
    train(longer, tmp_path / "straight")
    assert_same_end(tmp_path / "straight", again)


def test_a_finished_run_keeps_only_weights_unless_asked_and_says_so_when_it_should_go_on(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir, config = tmp_path / "run", make_config(data, "sasrec", *SETTINGS, "train.keep_optimizer=false")
    train(config, run_dir)
    store = CheckpointStore(run_dir / "checkpoints")
    latest, best = store.latest_and_best() or (None, None)
    assert latest is not None
    assert best is not None
    assert set(store.steps()) == {latest.step, best.step}
    assert latest.tensors.keys() == best.tensors.keys() == {"model"}
    one = CheckpointStore(whole / "checkpoints").load(best.step)
    assert all(torch.equal(value, best.tensors["model"][name]) for name, value in one.tensors["model"].items())
    assert lines(run_dir) == lines(whole)
    train(config, run_dir)  # nothing is left to train, so it is as it was
    assert lines(run_dir) == lines(whole)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"cannot be trained on after epoch 4: .*another --name, .*train.epochs=5"):
        train(make_config(data, "sasrec", *SETTINGS, "train.epochs=5"), run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def damage(folder: Path) -> Path:
    """Flip one bit in the weights of a checkpoint; returns their file."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return path


def test_a_damaged_checkpoint_is_not_taken_for_none(data: Path, tmp_path: Path) -> None:
    """The latest is the best as well; one damaged byte in it costs the steps since the one before, and no line."""
    config, end = make_config(data, "sasrec", *SETTINGS, "train.epochs=3"), 24
    train(config, tmp_path / "whole")
    store = CheckpointStore(tmp_path / "whole/checkpoints")
    latest = store.latest()
    assert latest is not None
    assert latest.step == latest.state["stopping"]["best_step"] == end
    assert store.steps() == [end - 8, end - 2, end]  # a checkpoint every 3 steps of the 8 of an epoch
    run_dir = Path(shutil.copytree(tmp_path / "whole", tmp_path / "run"))
    before = (run_dir / "metrics.jsonl").read_bytes()
    newest = damage(run_dir / f"checkpoints/step-{end:09d}")
    train(config, run_dir)
    assert_same_end(tmp_path / "whole", run_dir)
    assert (run_dir / "metrics.before-resume-1.jsonl").read_bytes() == before

    before = (run_dir / "metrics.jsonl").read_bytes()
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    files = [damage(folder) for folder in folders]
    assert newest in files
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole") as error:
        train(config, run_dir)
    assert all(str(file) in str(error.value) for file in files)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert sorted((run_dir / "checkpoints").glob("step-*")) == folders


def test_early_stopping_counts_on_after_a_resume(data: Path, tmp_path: Path) -> None:
    """A learning rate of almost 0: only the first validation is an improvement, so patience 3 ends after epoch 4."""
    config = make_config(data, "sasrec", "train.epochs=9", "train.patience=3", "train.learning_rate=1e-30")
    train(config, tmp_path / "whole")
    state = CheckpointStore(tmp_path / "whole/checkpoints").latest()
    assert state is not None
    assert (state.state["stopping"]["since"], state.state["stopping"]["best_epoch"], state.step) == (3, 1, 16)
    assert run_failing(config, tmp_path / "run", TorchEngine, 16) == 16
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    assert json.loads((tmp_path / "run/test.json").read_text())["epoch"] == 1


def test_stopping_restores_from_json() -> None:
    stopping = EarlyStopping(2)
    assert [stopping.update(value, n, 10 * n) for n, value in enumerate([0.1, 0.3, 0.3])] == [True, True, False]
    other = EarlyStopping(2)
    other.restore(json.loads(json.dumps(stopping.state())))
    assert not other.stop
    assert not other.update(0.2, 4, 40)
    assert (other.stop, other.best_epoch, other.best_step) == (True, 1, 10)


def test_another_configuration_is_refused_with_the_difference(data: Path, whole: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    changed = make_config(data, "sasrec", *SETTINGS, "train.learning_rate=0.5", "model.hidden=16")
    with pytest.raises(UserError) as error:
        train(changed, again)
    assert "train.learning_rate was 0.002, is 0.5" in str(error.value)
    assert "model.hidden was 8, is 16" in str(error.value)
    assert_same_end(whole, again)


def test_other_data_is_refused(whole: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", replace(OPTIONS, seed=4))
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    with pytest.raises(UserError, match="was trained on other data"):
        train(make_config(tmp_path / "other", "sasrec", *SETTINGS), again)
    assert_same_end(whole, again)


def test_another_evaluation_and_another_manifest_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    """What ranks the catalogue chooses the best epoch; a manifest may differ although no file does."""
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    with pytest.raises(UserError, match=r"was chosen by another evaluation.*eval\.index was 'exact', is 'flat'"):
        train(make_config(data, "sasrec", *SETTINGS, "eval.index=flat"), again)
    manifest = json.loads((copy / "manifest.json").read_text())
    text = json.dumps({**manifest, "provenance": {**manifest["provenance"], "time": "2030-01-01"}})
    (copy / "manifest.json").write_text(text)
    moved = make_config(copy, "sasrec", *SETTINGS, "eval.metrics=[HR]", "eval.batch_size=7")
    train(moved, again)  # prepared another day, and other figures shown: the same run
    (copy / "manifest.json").write_text(json.dumps({**manifest, "max_length": manifest["max_length"] - 1}))
    with pytest.raises(UserError, match=r"copy/manifest\.json has changed since .* its files have not"):
        train(moved, again)
    assert_same_end_but_for_figures(whole, again)


def assert_same_end_but_for_figures(a: Path, b: Path) -> None:
    one, two = CheckpointStore(a / "checkpoints").latest(), CheckpointStore(b / "checkpoints").latest()
    assert one is not None
    assert two is not None
    assert (one.step, one.state) == (two.step, two.state)


def test_a_run_of_before_and_one_of_other_versions_go_on(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that notes less, as earlier versions wrote it, and one that was made with another torch."""
    config = make_config(data, "sasrec", *SETTINGS)
    for name, change in (("old", {"evaluation", "manifest", "versions"}), ("other", {"torch": "1.0"})):
        run_dir = Path(shutil.copytree(whole, tmp_path / name))
        store = CheckpointStore(run_dir / "checkpoints")
        for step in store.steps():
            checkpoint = store.load(step)
            state = checkpoint.state
            if isinstance(change, set):
                state = {key: value for key, value in state.items() if key not in change}
            else:
                state = {**state, "versions": {**state["versions"], **change}}
            store.commit(step, checkpoint.tensors, state)
        capsys.readouterr()
        train(config, run_dir)
        assert ("warning: the run was begun with torch 1.0" in capsys.readouterr().err) == (name == "other")
        assert open_run(run_dir).epoch > 0
        assert ("warning: other was trained with torch 1.0" in capsys.readouterr().err) == (name == "other")
        assert lines(run_dir) == lines(whole)


def test_a_refused_writer_changes_nothing(data: Path, tmp_path: Path) -> None:
    """Before its first checkpoint a run has no more than its lock: a second start with another width is refused."""
    run_dir = tmp_path / "run"
    config = write_config(make_config(data, "sasrec", *SETTINGS), run_dir)
    before = (run_dir / "config.yaml").read_bytes()
    with sole_writer(run_dir):
        other = make_config(data, "sasrec", *SETTINGS, "model.hidden=16")
        process = fork_server().Process(target=_train_impatiently, args=(other, run_dir))
        process.start()
        process.join(60)
        assert process.exitcode == 2
        assert (run_dir / "config.yaml").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "config.yaml"]
    train(config, run_dir)


def _train_impatiently(config: RunConfig, run_dir: Path) -> None:
    settings = [f"--set={key}" for key in ("model.inner=8", "cluster.launcher=inline", "tracking.mlflow=false")]
    sole_writer.__wrapped__.__defaults__ = (0.1,)  # the product waits a minute
    command = ["train", "--recipe", str(run_dir / "config.yaml"), "--resume", "--name", run_dir.name,
               "--runs-dir", str(run_dir.parent), f"--set=model.hidden={config.model.options.hidden}"]  # fmt: skip
    sys.exit(main([*command, *settings]))


def test_damaged_data_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    path = copy / "sequences/items.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"items\.npy"):
        train(make_config(copy), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_step_that_is_not_finite_ends_the_run_and_names_its_rows(data: Path, tmp_path: Path) -> None:
    """The content of one item becomes infinite in the second epoch; the rows of that step are listed."""
    config, run_dir = make_config(data, "mealrec", "train.epochs=3", "train.checkpoint_every=2"), tmp_path / "run"
    step, spoilt = TorchEngine.step, list[None]()

    def spoiling(self: TorchEngine, batches: Any) -> Any:
        spoilt.append(None)
        if len(spoilt) == 7:  # step 2 of epoch 2, counted from 0
            batch = batches[0][0]
            item = batch.history[3, batch.length[3] - 1]
            table: Any = self.model.get_submodule("sequence").table
            table._fields["sequence"][item] = torch.inf
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngine, "step", spoiling)
        with pytest.raises(UserError, match=r"not finite in epoch 2.*nonfinite\.json"):
            train(config, run_dir)
    report = json.loads((run_dir / "nonfinite.json").read_text())
    assert (report["epoch"], report["step"], len(spoilt)) == (2, 2, 7)
    assert len(report["training_rows"]) == len(set(report["training_rows"])) == 64
    last = CheckpointStore(run_dir / "checkpoints").latest()
    assert last is not None
    assert last.step == 6
    assert all(torch.isfinite(value).all() for value in last.tensors["model"].values())
    train(config, tmp_path / "whole")
    train(config, run_dir)  # with correct content the run continues
    assert_same_end(tmp_path / "whole", run_dir)


def test_seeds_and_models_differ(data: Path, whole: Path, tmp_path: Path) -> None:
    train(make_config(data, "sasrec", *SETTINGS, "seed=1"), tmp_path / "run")
    assert lines(tmp_path / "run") != lines(whole)
    assert Dataset.open(data).manifest.train_rows == 234
