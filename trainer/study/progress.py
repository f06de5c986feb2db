"""What a person sees of a study that runs for hours: trials done, running, failed, the best so far, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cluster import console
from cluster.console import Verbosity
from trainer.durations import in_words

_EVERY_S = 30.0


class StudyProgress:
    """A `cluster.ray_tune.Watcher` that prints a line when a trial ends, and one at least every half minute.

    names: of the trials that are to be run; what is told of others, that ended in an earlier sitting, is not shown.
    at_once: trials that run together. outcome: what became of a trial that ended, in words; None if it is finished.
    value: its validation.
    """

    def __init__(
        self,
        names: Iterable[str],
        at_once: int,
        outcome: Callable[[str], str | None],
        value: Callable[[str], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names, self._at_once = {*names}, at_once
        self._outcome, self._value = outcome, value
        self._clock = clock
        self._running: dict[str, float] = {}  # when the trial started
        self._done, self._failed, self._stopped = 0, 0, 0
        self._spent = 0.0  # seconds of all trials that ended
        self._best: tuple[float, str] | None = None
        self.deaths: dict[str, str] = {}  #: why, of the trials whose process failed
        self._shown = clock()

    def started(self, name: str) -> None:
        """See `Watcher`."""
        if name in self._names:
            self._running.setdefault(name, self._clock())
            self._tick()

    def reported(self, name: str, epoch: int, value: float) -> None:
        """See `Watcher`."""
        del epoch
        if name in self._names:
            self._see(name, value)
            self._tick()

    def ended(self, name: str, error: str | None) -> None:
        """See `Watcher`."""
        if name not in self._names:
            return
        since = self._running.pop(name, self._clock())
        self._spent += self._clock() - since
        if error is not None:
            self.deaths[name] = error
        told = error or self._outcome(name)
        if told is None:
            self._done += 1
            value = self._value(name)
            self._see(name, value)
            said = "done" if value is None else f"validation {value:.4f}"
        elif told.startswith("stopped"):
            self._stopped += 1
            said = told
        else:
            self._failed += 1
            said = f"failed: {told}"
        console.say(f"{name}: {said}, {in_words(self._clock() - since)}  [{self.line()}]", Verbosity.BRIEF)
        self._shown = self._clock()

    def line(self) -> str:
        """The state of the study in a line."""
        ended = self._done + self._failed + self._stopped
        parts = [f"{ended}/{len(self._names)} trials ended", f"{len(self._running)} running"]
        if self._stopped:
            parts.append(f"{self._stopped} stopped early")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._best:
            parts.append(f"best {self._best[1]} {self._best[0]:.4f}")
        if (left := self._seconds_left()) is not None:
            parts.append(f"about {in_words(left)} left")
        return ", ".join(parts)

    def _see(self, name: str, value: float | None) -> None:
        if value is not None and (self._best is None or value > self._best[0]):
            self._best = (value, name)

    def _seconds_left(self) -> float | None:
        """By the mean time of the trials that ended."""
        ended = self._done + self._failed + self._stopped
        if not ended:
            return None
        mean = self._spent / ended
        waiting = len(self._names) - ended - len(self._running)
        now = self._clock()
        running = sum(max(0.0, mean - (now - since)) for since in self._running.values())
        return (waiting * mean + running) / max(1, self._at_once)

    def _tick(self) -> None:
        if self._clock() - self._shown >= _EVERY_S:
            self._shown = self._clock()
            console.say(f"  [{self.line()}]", Verbosity.BRIEF)
