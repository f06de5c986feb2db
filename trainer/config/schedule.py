"""The section `train.schedule` of a run's configuration."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ScheduleConfig(BaseModel):
    """How the learning rate changes during a run.

    name: constant, or step: after every `epochs` epochs it is multiplied by `factor`, or cosine: it falls along half a
        cosine, to 0 at the end of epoch number `epochs`, or plateau: it is multiplied by `factor` after more than
        `epochs` epochs in a row whose mean training loss is no new least one (by a ten-thousandth)
    epochs: for step: epochs from one fall to the next; for cosine: epochs of the whole fall; for plateau: of patience
    factor: for step and plateau: what the learning rate is multiplied by
    warmup: number of steps at the start in which it rises linearly to its value; 0: none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["constant", "step", "cosine", "plateau"] = "constant"
    epochs: int = Field(default=100, ge=1)
    factor: float = Field(default=0.1, gt=0, le=1)
    warmup: int = Field(default=0, ge=0)

    def share(self, step: int, steps_per_epoch: int, plateaus: int) -> float:
        """What the learning rate is multiplied by in a step, from 0, of the run; plateaus: those met until then."""
        done, whole = step - self.warmup, self.epochs * steps_per_epoch - self.warmup
        if done < 0:
            return (step + 1) / (self.warmup + 1)
        if self.name == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * min(done / whole, 1)) if whole > 0 else 0.0
        if self.name == "plateau":
            return self.factor**plateaus
        return self.factor ** (step // (self.epochs * steps_per_epoch)) if self.name == "step" else 1.0
