"""`mealrec train` with one process killed: `python -m tests.helpers.ray_training_worker VICTIM RANK STEP MARKER ...`.

The rest of the arguments are those of `mealrec`. The only change to the product: on the worker of rank RANK, the
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

from trainer.cli import main
from trainer.training import worker
from trainer.training.worker import train_worker

#: how long a step takes once the signal is sent: the run must not end before the workers do
ORPHAN_STEP_S = 0.5


@dataclass
class Killing:
    """`train_worker` with the kill in it; travels to Ray's workers."""

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
        from trainer.training.engine_deepspeed import DeepSpeedEngine

        step, done = DeepSpeedEngine.step, 0

        def killing(engine: DeepSpeedEngine, batches: Any) -> Any:
            nonlocal done
            done += 1
            if done == self.step:
                self.marker.touch()
                number = signal.SIGTERM if self.victim.endswith("term") else signal.SIGKILL
                os.kill(os.getpid() if self.victim.startswith("worker") else self.driver, number)
            if done >= self.step:
                time.sleep(ORPHAN_STEP_S)
            return step(engine, batches)

        DeepSpeedEngine.step = killing  # type: ignore[assignment]


if __name__ == "__main__":
    victim, rank, step, marker = sys.argv[1:5]
    sys.argv[1:] = sys.argv[5:]  # what config.yaml says about the command
    # `mealrec train` takes it from there once everything is checked
    worker.train_worker = Killing(victim, int(rank), int(step), Path(marker), os.getpid())  # type: ignore[assignment]
    sys.exit(main())
