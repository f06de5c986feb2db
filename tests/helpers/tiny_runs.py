"""A tiny synthetic dataset and tiny configurations for tests of training, and processes that start fast."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.synthetic.generate import SyntheticOptions, generate

OPTIONS = SyntheticOptions(
    users=80, items=60, topics=3, mean_length=6.0, frames=3, width=8, text_width=6, max_length=5, seed=3
)
MODELS = {
    "sasrec": ["model.hidden=8", "model.inner=8"],
    "cl4srec": ["model.hidden=8", "model.inner=8"],
    "diqdiff": ["model.hidden=8", "model.inner=8", "model.layers=2", "model.steps=3", "model.codes=4"],
    "ssdrec": ["model.hidden=8", "model.inner=8", "model.strong=1"],
    "tedrec": ["model.hidden=8", "model.inner=8", "model.experts=2"],
    "morec": ["model.hidden=8"],
    "iisan": ["model.hidden=8", "model.adapter=4"],
    "iisan-versa": ["model.hidden=8", "model.adapter=4", "model.visual_adapter=4"],
    "mealrec": [
        "model.backbone=sasrec", "model.sasrec={hidden: 8, inner: 8}", "model.tcd.channels=[8, 16]", "model.steps=3",
    ],
    "m3bsr": ["model.hidden=8", "model.inner=8", "model.heads=2", "model.layers=1"],
    "dmmd4sr": ["model.hidden=8", "model.inner=8", "model.clusters=4"],
    "mmgcn": ["model.hidden=8", "model.visual_width=8"],
}  # fmt: skip
RUN = ["train.epochs=2", "train.batch_size=64", "train.learning_rate=0.002",
       "engine.name=torch", "cluster.launcher=inline", "cluster.threads=1",
       "tracking.mlflow=false"]  # fmt: skip


def make_dataset(out: Path) -> Path:
    """Make a dataset: 80 users, 60 items, about 250 training rows, every content field."""
    generate(out, OPTIONS)
    return out


def make_config(data: Path, model: str = "sasrec", *settings: str) -> RunConfig:
    """A run of a few seconds, inline, with plain torch unless `settings` say otherwise."""
    return recipe.load("demo", model, [*MODELS.get(model, []), *RUN, *settings], str(data))


def run_ranks(target: Callable[..., None], world: int, *arguments: Any, timeout: float = 120) -> None:
    """Run `target(rank, world, *arguments)` on `world` processes, and assert that all end without an error."""
    codes = ended_ranks(target, world, *arguments, timeout=timeout)
    assert codes == [0] * world, f"exit codes {codes} of world {world}"


def ended_ranks(target: Callable[..., None], world: int, *arguments: Any, timeout: float = 120) -> list[int | None]:
    """As `run_ranks`; returns the exit codes, None for a process that had not ended."""
    processes = [fork_server().Process(target=target, args=(rank, world, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@contextmanager
def joined(rank: int, world: int, store: Path) -> Iterator[None]:
    """For a target of `run_ranks`: a process group with gloo while the block runs. store: a file that is not there."""
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    if world > 1:
        file = dist.FileStore(str(store), world)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=file, rank=rank, world_size=world)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def fork_server() -> ForkServerContext:
    """Forks processes from one that has imported torch and DeepSpeed: they start in milliseconds, with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.preloaded"])
    return context
