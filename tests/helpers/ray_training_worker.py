"""`mealrec train` with one process killed: `python -m tests.helpers.ray_training_worker VICTIM RANK STEP MARKER ...`.

The other arguments are those of `mealrec`. Only one thing is changed: on the worker of rank RANK, the
engine's step number STEP (from 1) begins with a SIGKILL, of that worker or of the driver (VICTIM worker-term,
driver-term: with a SIGTERM), unless the file MARKER shows that this was done before.
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

    victim: str
    rank: int
    step: int
    marker: Path
    driver: int

    def __call__(self, settings: dict[str, Any]) -> None:
        import torch.distributed as dist

        if dist.get_rank() == self.rank and not self.marker.exists():
            self._arm()
        train_worker(settings)

    def _arm(self) -> None:
        deepspeed_engine = import_deepspeed_engine(torch.device("cpu"))
        step, done = deepspeed_engine.step, 0

        def killing(engine: Engine, batches: Any) -> Any:
            nonlocal done
            done += 1
            if done == self.step:
                self.marker.touch()
                number = signal.SIGTERM if self.victim.endswith("term") else signal.SIGKILL
                os.kill(os.getpid() if self.victim.startswith("worker") else self.driver, number)
            if done >= self.step:
                time.sleep(ORPHAN_STEP_S)
            return step(engine, batches)  # type: ignore[arg-type]

        deepspeed_engine.step = killing  # type: ignore[assignment]


if __name__ == "__main__":
    victim, rank, step, marker = sys.argv[1:5]
    sys.argv[1:] = sys.argv[5:]  # so that config.yaml has the command
    # `mealrec train` imports it from there after its checks
    worker.train_worker = Killing(victim, int(rank), int(step), Path(marker), os.getpid())  # type: ignore[assignment]
    sys.exit(main())
