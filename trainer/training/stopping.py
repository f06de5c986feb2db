"""What follows from one epoch to the next: early stopping on validation NDCG@10, and plateaus of the training loss.

A checkpoint holds the whole state of both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: a loss is a new least one if it is lower by this share (torch's ReduceLROnPlateau)
_LOWER = 1e-4


@dataclass
class EarlyStopping:
    """The best value so far, its step and epoch, and the number of validations since. Equal is not an improvement."""

    patience: int
    best: float = -1.0
    best_step: int = -1
    best_epoch: int = -1
    since: int = 0

    def update(self, value: float, epoch: int, step: int) -> bool:
        """Record the value of one validation. Returns whether it is the best so far."""
        if value > self.best:
            self.best, self.best_epoch, self.best_step, self.since = value, epoch, step, 0
            return True
        self.since += 1
        return False

    @property
    def stop(self) -> bool:
        return self.since >= self.patience

    def state(self) -> dict[str, float]:
        """JSON values for `restore`."""
        return {key: value for key, value in asdict(self).items() if key != "patience"}

    def restore(self, state: dict[str, float]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


@dataclass
class Plateaus:
    """Plateaus of the training loss so far: more than `patience` epochs in a row without a new least mean. The count
    then begins anew, as in torch's ReduceLROnPlateau.
    """

    patience: int
    least: float | None = None
    since: int = 0
    met: int = 0

    def update(self, loss: float) -> None:
        """Record the mean loss of one epoch."""
        if self.least is None or loss < self.least - _LOWER * abs(self.least):
            self.least, self.since = loss, 0
            return
        self.since += 1
        if self.since > self.patience:
            self.met, self.since = self.met + 1, 0

    def state(self) -> dict[str, Any]:
        """JSON values for `restore`."""
        return {"least": self.least, "since": self.since, "met": self.met}

    def restore(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
