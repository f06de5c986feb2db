"""The guarantees of the loop on real runs: a run that is killed or fails at any point ends like an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from models.errors import UserError
from tests.helpers.run_worker import run_command, run_process
from tests.helpers.tiny_runs import MODELS, RUN, make_config
from tests.helpers.tracked_runs import client_of, history, recorded, tracked, until
from tests.helpers.training_runs import SETTINGS, STEPS, assert_same_end, lines, train, write_config
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.training.build import import_deepspeed_engine
from trainer.training.checkpoint import CheckpointStore
from trainer.training.engine import Engine, TorchEngine
from trainer.training.stopping import EarlyStopping


@pytest.fixture(scope="module", autouse=True)
def _leave_no_process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():  # DeepSpeed made one in this process
        dist.destroy_process_group()


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


def test_a_killed_run_is_marked_killed_and_once_resumed_mlflow_has_every_epoch_once(
    data: Path, whole: Path, tmp_path: Path, mlflow_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is resumed elsewhere, without MLflow, and synced by hand."""
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    run_dir, client = tmp_path / "runs" / "run", client_of(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_dir.parent.mkdir()
    config = make_config(data, "sasrec", *SETTINGS)
    mirrored = make_config(data, "sasrec", *SETTINGS, "tracking.mlflow=true")
    assert run_process(write_config(mirrored, run_dir), run_dir, ("evaluation", 3)) == -signal.SIGKILL
    run_id = until(lambda: recorded(run_dir)["run_id"])
    until(lambda: client.get_run(run_id).info.status == "KILLED")
    assert history(client, run_id, "epoch") == [(8 * n, float(n)) for n in (1, 2)]
    until(lambda: client.list_artifacts(run_id))
    assert run_process(config, run_dir) == 0
    assert_same_end(whole, run_dir)
    assert tracked(run_dir) == 0
    told = capsys.readouterr().out
    assert f"all {len(lines(run_dir))} lines" in told
    assert "/runs?workflowType=machine_learning" in told
    assert history(client, run_id, "epoch") == [(8 * n, float(n)) for n in range(1, 5)]
    assert client.get_run(run_id).info.status == "FINISHED"


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


def test_each_step_has_the_learning_rate_of_its_schedule(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Adam has in its groups at each update, also after a resume."""
    settings = ("train.batch_size=64", "train.schedule={name: step, epochs: 1, factor: 0.5, warmup: 1}")
    seen = []
    step = TorchEngine.step

    def noting(self: TorchEngine, batches: Any) -> Any:
        seen.append(self._adam.param_groups[0]["lr"])
        return step(self, batches)

    monkeypatch.setattr(TorchEngine, "step", noting)
    train(make_config(data, "sasrec", *settings, "train.epochs=1", "train.keep_optimizer=true"), tmp_path)
    train(make_config(data, "sasrec", *settings, "train.epochs=2", "train.keep_optimizer=true"), tmp_path)
    assert seen == pytest.approx([0.001, *[0.002] * 3, *[0.001] * 4])


def test_the_learning_rate_falls_on_plateaus_of_the_loss(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by torch's scheduler from the losses of the log; also where the run was resumed on the way."""
    settings = (
        "train.batch_size=64", "train.schedule={name: plateau, epochs: 1, factor: 0.5}", "train.learning_rate=1e-7",
        "train.patience=99", "train.keep_optimizer=true",
    )  # fmt: skip
    rates = list[float]()
    set_rate = TorchEngine.set_learning_rate

    def noting(self: TorchEngine, rate: float) -> None:
        rates.append(rate)
        set_rate(self, rate)

    monkeypatch.setattr(TorchEngine, "set_learning_rate", noting)
    train(make_config(data, "sasrec", *settings, "train.epochs=8"), tmp_path / "whole")
    losses = [line["metrics"]["loss"]["ranking"] for line in lines(tmp_path / "whole") if line["event"] == "epoch"]
    expected, whole = list[float](), rates[:: len(rates) // 8]
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-7)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=1, eps=0)
    for loss in losses:
        expected.append(adam.param_groups[0]["lr"])
        scheduler.step(loss)
    assert whole == pytest.approx(expected)
    assert whole[-1] < whole[0]
    rates.clear()
    for epochs in (4, 5, 8):
        train(make_config(data, "sasrec", *settings, f"train.epochs={epochs}"), tmp_path / "again")
    assert rates[:: len(rates) // 8] == whole


def test_stopping_restores_from_json() -> None:
    stopping = EarlyStopping(2)
    assert [stopping.update(value, n, 10 * n) for n, value in enumerate([0.1, 0.3, 0.3])] == [True, True, False]
    other = EarlyStopping(2)
    other.restore(json.loads(json.dumps(stopping.state())))
    assert not other.stop
    assert not other.update(0.2, 4, 40)
    assert (other.stop, other.best_epoch, other.best_step) == (True, 1, 10)


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
