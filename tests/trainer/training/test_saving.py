"""Checkpoints that are written beside the training, as on a GPU: the same run, and nothing that fails is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import preemption
from cluster.console import Verbosity
from cluster.failures import Stopped
from models.errors import UserError
from tests.helpers.tiny_runs import make_config
from tests.helpers.training_runs import SETTINGS, STEPS, assert_same_end, train, write_config
from trainer.training import loop
from trainer.training.checkpoint import CheckpointStore
from trainer.training.engine import TorchEngine
from trainer.training.groups import Groups
from trainer.training.reporting import EpochReporter
from trainer.training.saving import Saver


def test_saves_run_one_after_the_other_and_each_ends_before_the_next_begins() -> None:
    saver, seen = Saver(background=True), list[str]()
    first = threading.Event()
    saver.save(lambda: (first.wait(5), seen.append("first")))
    assert not seen, "the caller goes on"
    first.set()
    saver.save(lambda: seen.append("second"))
    assert seen[0] == "first"
    saver.finish()
    assert seen == ["first", "second"]


def test_what_a_save_raises_is_raised_by_the_next_once() -> None:
    saver, seen = Saver(background=True), list[str]()
    saver.save(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        saver.save(lambda: seen.append("not after a failure"))
    saver.finish()
    assert not seen
    saver.save(lambda: 1 // 0)
    saver.close()


def test_without_background_a_save_is_done_when_the_call_returns() -> None:
    seen = list[str]()
    Saver(background=False).save(lambda: seen.append("done"))
    assert seen == ["done"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Saves in the background that take longer than an epoch; the steps of those that have begun."""
    begun: list[int] = []
    state, commit = TorchEngine.state, CheckpointStore.commit

    def copied(self: TorchEngine) -> Groups:  # as from a GPU
        return {group: {name: x.clone() for name, x in tensors.items()} for group, tensors in state(self).items()}

    def slowly(self: CheckpointStore, step: int, *content: Any, **keep: Any) -> Path:
        begun.append(step)
        time.sleep(0.2)
        return commit(self, step, *content, **keep)

    monkeypatch.setattr(TorchEngine, "state", copied)
    monkeypatch.setattr(CheckpointStore, "commit", slowly)
    monkeypatch.setattr(loop, "Saver", lambda background, run_dir: Saver(background=not background, run_dir=run_dir))
    return begun


def test_a_run_with_saves_beside_its_steps_ends_as_one_without(
    data: Path, whole: Path, tmp_path: Path, slow: list[int]
) -> None:
    train(write_config(make_config(data, "sasrec", *SETTINGS), tmp_path / "run"), tmp_path / "run")
    assert slow[-1] == STEPS
    assert_same_end(tmp_path / "run", whole)


def test_a_full_disk_is_told_at_the_next_save_and_the_run_goes_on_later(
    data: Path, whole: Path, tmp_path: Path, slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, commit = write_config(make_config(data, "sasrec", *SETTINGS), tmp_path / "run"), CheckpointStore.commit
    for last in (6, STEPS):  # of the last save nothing but the end of the run can tell

        def full(self: CheckpointStore, step: int, *content: Any, last: int = last, **keep: Any) -> Path:
            if step == last:
                raise UserError("no space left")
            return commit(self, step, *content, **keep)

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "commit", full)
            with pytest.raises(UserError, match="no space left"):
                train(config, tmp_path / "run")
        assert last not in slow
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


def test_a_run_that_is_told_to_stop_waits_for_its_checkpoint(
    data: Path, tmp_path: Path, slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(make_config(data, "sasrec", *SETTINGS), tmp_path / "run")
    store, told = CheckpointStore(tmp_path / "run" / "checkpoints"), list[str]()

    def say(self: EpochReporter, text: str, at: Verbosity = Verbosity.NORMAL) -> None:
        del self, at
        if text.startswith("SIGTERM"):
            latest = store.latest()
            assert latest is not None
            told.append(f"{text}, in truth {latest.step}")

    monkeypatch.setattr(EpochReporter, "say", say)
    monkeypatch.setattr(preemption, "noticed", lambda: 6 in slow)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run")
    assert told == [f"SIGTERM: the checkpoint of step {slow[-1]} is on the disk, in truth {slow[-1]}"]
