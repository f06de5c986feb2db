"""Training across two Ray nodes on this machine, of which one is switched off."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cluster import head
from tests.helpers.ray_nodes import node
from tests.helpers.run_worker import run_world
from tests.helpers.training_runs import assert_same_end, lines, write_config
from tests.trainer.training.test_ray_training import SETTINGS, STEPS, assert_same_weights, command, resumed_at, train
from trainer.config import recipe
from trainer.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.long]

STILL = ["model.attention_dropout=0.0", "model.hidden_dropout=0.0"]  # other workers would drop other values
EPOCHS, AT = 6, STEPS + 3
_PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, by two processes without Ray."""
    run = tmp_path_factory.mktemp("whole") / "tiny"
    settings = [*SETTINGS, *STILL, f"train.epochs={EPOCHS}"]
    run_world(write_config(recipe.load("demo", "sasrec", settings, str(data)), run), run, world=2)
    return run


@pytest.fixture
def small_head() -> Iterator[head.Head]:
    """A head with room for one worker: the second one has to be on another node."""
    with head.running(cpus=1) as where:
        yield where


def until_it_says(run: Path, text: str, training: Future[tuple[int, str]]) -> None:
    """Wait until rank 0 has printed `text`."""
    console, end = run / "ray" / "console.log", time.monotonic() + _PATIENCE_S
    while text not in (console.read_text() if console.exists() else ""):
        assert not training.done(), training.result()
        assert time.monotonic() < end, f"never said: {text}"
        time.sleep(0.2)


@contextmanager
def on_two_nodes(
    run: Path, data: Path, where: head.Head, mark: str, *settings: str
) -> Iterator[tuple[Future[tuple[int, str]], Path]]:
    """Train with a worker on the head and one on a second node, which switches itself off at step AT.

    Yields, once both train, what the command ends with, and the file that is there when the node goes.
    """
    folder = run.parent.parent
    arguments = command(data, run, *STILL, f"train.epochs={EPOCHS}", "cluster.scale_up_s=90", *settings)
    on, kill = {**where.environment, "RAY_ADDRESS": where.address}, f"node:{mark}:{AT}"
    with ThreadPoolExecutor(1) as pool, node(where, mark, 1, folder / "node-1.log"):
        training = pool.submit(train, f"{mark}-driver", arguments, kill, ray_head=on)
        until_it_says(run, "2 workers", training)
        yield training, folder / kill


def test_a_run_waits_for_a_node_in_place_of_a_lost_one(
    data: Path, whole: Path, tmp_path: Path, small_head: head.Head
) -> None:
    """Two workers it has to be: it goes on, bit for bit, once there is another node."""
    run, mark = tmp_path / "runs" / "tiny", f"{os.getpid()}-waits"
    with on_two_nodes(run, data, small_head, mark) as (training, gone):
        while not gone.exists():
            assert not training.done(), training.result()
            time.sleep(0.1)
        with node(small_head, f"{mark}-2", 1, tmp_path / "node-2.log"):
            status, out = training.result()
    assert status == 0, out
    assert resumed_at(out) == [STEPS]
    assert_same_end(whole, run)
    assert_same_weights(whole, run)


def test_a_run_goes_on_with_what_is_left_and_grows_again(
    data: Path, whole: Path, tmp_path: Path, small_head: head.Head
) -> None:
    """cluster.workers_at_least=1: one worker while the node is away, two once there is another; the same steps."""
    run, mark = tmp_path / "runs" / "tiny", f"{os.getpid()}-grows"
    with on_two_nodes(run, data, small_head, mark, "cluster.workers_at_least=1") as (training, _):
        until_it_says(run, "1 of 2 workers: nodes are missing", training)
        with node(small_head, f"{mark}-2", 1, tmp_path / "node-2.log"):
            status, out = training.result()
    assert status == 0, out
    assert re.findall(r"(\d) workers?, steps of 30 rows", out) == ["2", "1", "2"]
    one, two = (CheckpointStore(each / "checkpoints").latest() for each in (whole, run))
    assert one is not None
    assert two is not None
    assert one.step == two.step == EPOCHS * STEPS
    for name, value in one.tensors["model"].items():
        assert torch.allclose(value, two.tensors["model"][name], rtol=1e-4, atol=1e-5), name
    losses = [
        [row["metrics"]["loss"]["ranking"] for row in lines(each) if row["event"] == "epoch"] for each in (whole, run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
