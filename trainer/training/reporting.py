"""Lines about a training run, from rank 0: epoch, loss terms, rows per second, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cluster import console
from cluster.console import Verbosity
from trainer.durations import in_words


def workers_in_words(number: int, rows: int, *, divided: bool) -> str:
    """How many workers share steps of so many rows. divided: whether they share the item tables, too."""
    if number == 1:
        return f"1 worker, steps of {rows:,} rows"
    shared = ", item rows sharded" if divided else ""
    return f"{number} workers{shared}, steps of {rows:,} rows ({rows / number:,.0f} on each)"


class EpochReporter:
    """Prints one line at the end of each epoch, and within an epoch at most one line every `interval` seconds."""

    def __init__(self, enabled: bool, epochs: int, interval: float = 5.0) -> None:
        self._enabled = enabled
        self._epochs = epochs
        self._interval = interval
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start to measure the time of an epoch."""
        self._started = self._shown = time.perf_counter()

    def due(self) -> bool:
        """Whether to print a line within the epoch. Only then may the host wait for a loss."""
        return self._enabled and console.shows(Verbosity.NORMAL) and time.perf_counter() - self._shown >= self._interval

    def step(self, epoch: int, done: int, total: int, rows: int, losses: Mapping[str, float]) -> None:
        """Print a line within an epoch. rows: processed since `start_epoch`. done: steps of `total` that are done."""
        self._shown = time.perf_counter()
        speed = rows / max(1e-9, self._shown - self._started)
        left = (self._shown - self._started) / max(1, done) * (total - done)
        where = f"epoch {epoch}/{self._epochs} step {done}/{total}"
        self.say(f"{where} {_terms(losses)} {speed:,.0f} rows/s, epoch done in {left:.0f} s")

    def epoch(self, epoch: int, losses: Mapping[str, float], rows_per_second: float, valid: str, eta: float) -> None:
        """Print the line at the end of an epoch. eta: seconds until the end of the last epoch at this speed."""
        self.say(
            f"epoch {epoch}/{self._epochs} {_terms(losses)} {rows_per_second:,.0f} rows/s | {valid} | "
            f"at most {in_words(eta)} left"
        )

    def say(self, text: str, at: Verbosity = Verbosity.NORMAL) -> None:
        """Print a line on rank 0, unless less than the level `at` was asked for."""
        if self._enabled:
            console.say(text, at)

    def warn(self, text: str) -> None:
        """Print a warning on rank 0, at every level."""
        if self._enabled:
            console.warn(text)


def _terms(losses: Mapping[str, float]) -> str:
    """The ranking loss, which every trained system has, then the others by name: the same order in every line."""
    ordered = sorted(losses, key=lambda name: (name != "ranking", name))
    return " ".join(f"{name} {losses[name]:.4f}" for name in ordered)
