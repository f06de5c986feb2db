"""The guarantees of the loop on real runs: a run that is killed or fails at any point ends like an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from models.errors import UserError
from tests.helpers.run_worker import run_process
from tests.helpers.tiny_runs import OPTIONS, make_config, make_dataset
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.data.synthetic.generate import generate
from trainer.training.checkpoint import CheckpointStore
from trainer.training.engine import Engine, TorchEngine
from trainer.training.stopping import EarlyStopping
from trainer.training.worker import train_worker

STEPS = 32  # steps of the undisturbed run: 4 epochs of 8
SETTINGS = ("train.epochs=4", "train.batch_size=30", "train.checkpoint_every=3", "train.patience=9")


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
    train_worker({"config": config.model_dump(mode="json"), "run_dir": str(run_dir)})


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
    for group in ("model", "optimizer"):
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
    from trainer.training.engine_deepspeed import DeepSpeedEngine

    settings = ("train.batch_size=64", "train.checkpoint_every=2", "engine.name=deepspeed", "engine.zero_stage=2")
    config = make_config(data, "mealrec", *settings)
    train(config, tmp_path / "whole")
    assert run_failing(config, tmp_path / "run", DeepSpeedEngine, 8) == 8
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
