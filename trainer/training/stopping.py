"""Early stopping on validation NDCG@10. A checkpoint holds its whole state."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
