"""The progress line of a run, on rank 0: epoch, loss terms, rows per second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from trainer.durations import in_words


class Progress:
    """Prints at most one line per `interval` seconds inside an epoch, and one per epoch."""

    def __init__(self, enabled: bool, epochs: int, interval: float = 5.0) -> None:
        self._enabled = enabled
        self._epochs = epochs
        self._interval = interval
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start the clock of an epoch."""
        self._started = self._shown = time.perf_counter()

    def due(self) -> bool:
        """Whether a line inside the epoch is due: the only moment at which the host may wait for a loss."""
        return self._enabled and time.perf_counter() - self._shown >= self._interval

    def step(self, epoch: int, done: int, total: int, rows: int, losses: Mapping[str, float]) -> None:
        """One line inside an epoch; `rows` were processed since `start_epoch`, `done` of `total` steps."""
        self._shown = time.perf_counter()
        speed = rows / max(1e-9, self._shown - self._started)
        left = (self._shown - self._started) / max(1, done) * (total - done)
        where = f"epoch {epoch}/{self._epochs} step {done}/{total}"
        self.say(f"{where} {_terms(losses)} {speed:,.0f} rows/s, epoch done in {left:.0f} s")

    def epoch(self, epoch: int, losses: Mapping[str, float], rows_per_second: float, valid: str, eta: float) -> None:
        """One line at the end of an epoch; eta: seconds until the last epoch at this speed."""
        self.say(
            f"epoch {epoch}/{self._epochs} {_terms(losses)} {rows_per_second:,.0f} rows/s | {valid} | "
            f"at most {in_words(eta)} left"
        )

    def say(self, text: str) -> None:
        """A line of its own, at once (under Ray the output is a pipe)."""
        if self._enabled:
            print(text, flush=True)
            sys.stdout.flush()


def _terms(losses: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in losses.items())
