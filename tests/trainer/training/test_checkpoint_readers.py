"""Checkpoints that are read while they are written: by a reader beside the writer, and after the writer was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.errors import UserError
from tests.helpers.checkpoints import assert_consistent, content
from tests.helpers.paths import ROOT
from tests.helpers.tiny_runs import fork_server
from trainer.training import checkpoint
from trainer.training.checkpoint import CheckpointStore
from trainer.training.checkpoint_files import step_folders

#: forks a child that commits for each line of its input, so that torch is imported only once
COMMITTER = """
import os, sys
from pathlib import Path
from tests.helpers.checkpoints import content
from trainer.training.checkpoint import CheckpointStore
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store, step = CheckpointStore(Path(line.strip())), 0
        while True:
            step += 1
            store.commit(step // 2, *content(step // 2), keep=[step // 2 - 1])
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_a_writer_killed_at_any_time_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", COMMITTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as committer:
        assert committer.stdin
        assert committer.stdout
        steps, left_overs = set(), 0
        for kill in range(20):
            store = CheckpointStore(tmp_path / str(kill))
            print(store.root, file=committer.stdin, flush=True)
            child = int(committer.stdout.readline())
            at_least = rng.randint(0, 6)  # steps, not seconds: on a busy machine a step may take long
            while not store.steps() or max(store.steps()) < at_least:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            assert committer.stdout.readline() == "ended\n"
            step, _ = assert_consistent(store.latest())
            steps.add(step)
            left_overs += any(path.name.startswith(".") for path in store.root.iterdir())
            store.prune([step])
            assert len(list(store.root.iterdir())) == 1
        committer.stdin.close()
    assert len(steps) > 3  # the kills did fall at different times,
    assert left_overs > 3  # and in the middle of commits


def test_a_reader_beside_a_writer_always_finds_the_latest_and_its_best(tmp_path: Path) -> None:
    """The writer keeps the newest checkpoint alone, so that what a reader has listed is gone a moment later."""
    writer = fork_server().Process(target=_commit_for_ever, args=(tmp_path,))
    writer.start()
    try:
        while not CheckpointStore(tmp_path).steps():
            time.sleep(0.001)
        seen = set[int]()
        until = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < until:
            found = CheckpointStore(tmp_path).latest_and_best()
            assert found is not None
            latest, best = found
            assert best is not None
            seen.add(latest.step)
            for checkpoint in (latest, best):
                assert torch.equal(checkpoint.tensors["model"]["weight"], torch.full((64,), float(checkpoint.step)))
            assert best.step == latest.state["stopping"]["best_step"]
        assert writer.is_alive()
        assert len(seen) >= 20
    finally:
        writer.kill()
        writer.join()


def test_a_checkpoint_that_is_replaced_before_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, listed = CheckpointStore(tmp_path), 0
    store.commit(1, *content(1))

    def replaced_once(root: Path) -> list[tuple[int, Path]]:
        nonlocal listed
        found, listed = step_folders(root), listed + 1
        if listed == 1:
            CheckpointStore(root).commit(2, *content(2), keep=[])
        return found

    monkeypatch.setattr(checkpoint, "step_folders", replaced_once)
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2


def _commit_for_ever(root: Path) -> None:
    store, step = CheckpointStore(root), 0
    while True:
        step += 1
        best = step - step % 2
        weights = {"model": {"weight": torch.full((64,), float(step))}}
        store.commit(step, weights, {"stopping": {"best_step": max(best, 1)}}, keep=[max(best, 1)])


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, best in ((1, 1), (2, 2), (3, 2)):
        store.commit(step, content(step)[0], {"stopping": {"best_step": best}})
    found = store.latest_and_best()
    assert found is not None
    assert [checkpoint and checkpoint.step for checkpoint in found] == [3, 2]
    (tmp_path / "step-000000002/state.json").unlink()
    found = store.latest_and_best()
    assert found is not None
    assert [checkpoint and checkpoint.step for checkpoint in found] == [1, 1]
    (tmp_path / "step-000000001/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as error:
        store.latest_and_best()
    assert "step-000000001/model.safetensors" in str(error.value)
    assert "step-000000002/state.json" in str(error.value)
