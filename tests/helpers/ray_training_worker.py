"""`mealrec train` with processes killed: `python -m tests.helpers.ray_training_worker FOLDER KILLS ...`.

The other arguments are those of `mealrec`. KILLS: one or more of VICTIM:RANK:STEP (and :WORD, to
tell equal ones apart), joined by commas. Only one thing is
changed: for the first kill that was not done before (FOLDER then holds a file VICTIM:RANK:STEP), on the worker of rank
RANK, the engine's step number STEP (from 1, since the workers started) begins with a SIGKILL, of that worker or of the
driver (VICTIM worker-term, driver-term: with a SIGTERM). VICTIM node: RANK is the mark of a node, which is switched
off; while it is away and after, steps are slow, so that a run is still there when another node comes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster import head, ray_train
from tests.helpers.ray_nodes import switch_off
from trainer.cli import main
from trainer.training import worker
from trainer.training.build import import_deepspeed_engine
from trainer.training.engine import Engine
from trainer.training.worker import train_worker

#: how long a step takes once the signal is sent: the run must not end before the workers do
ORPHAN_STEP_S = 0.5


@dataclass
class Killing:
    """`train_worker` with the kill; it is pickled and sent to Ray's workers."""

    folder: Path
    kills: list[str]
    driver: int

    def __call__(self, settings: dict[str, Any]) -> None:
        import torch.distributed as dist

        left = [kill for kill in self.kills if not (self.folder / kill).exists()]
        if left:
            victim, rank, number = left[0].split(":")[:3]
            if rank == (os.environ.get(head._MARK) if victim == "node" else str(dist.get_rank())):
                self._arm(victim, int(number), self.folder / left[0])
        elif any(kill.startswith("node") for kill in self.kills):
            self._arm("nobody", 1, self.folder / "slow")
        train_worker(settings)

    def _arm(self, victim: str, at: int, marker: Path) -> None:
        deepspeed_engine = import_deepspeed_engine(torch.device("cpu"))
        step, done = deepspeed_engine.step, 0

        def killing(engine: Engine, batches: Any) -> Any:
            nonlocal done
            done += 1
            if done == at and victim == "node":
                marker.touch()
                switch_off(os.environ[head._MARK])
            elif done == at and victim != "nobody":
                marker.touch()
                number = signal.SIGTERM if victim.endswith("term") else signal.SIGKILL
                os.kill(os.getpid() if victim.startswith("worker") else self.driver, number)
            if done >= at:
                time.sleep(ORPHAN_STEP_S)
            return step(engine, batches)  # type: ignore[arg-type]

        deepspeed_engine.step = killing  # type: ignore[assignment]


if __name__ == "__main__":
    ray_train.LOOK_FOR_NODES_S = 2.0
    folder, kills = sys.argv[1:3]
    sys.argv[1:] = sys.argv[3:]  # so that config.yaml has the command
    # `mealrec train` imports it from there after its checks
    worker.train_worker = Killing(Path(folder), kills.split(","), os.getpid())  # type: ignore[assignment]
    sys.exit(main())
