"""Progress on standard error for anything that takes longer than five seconds: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time

_QUIET_S = 5.0
_LINE_EVERY_S, _BAR_EVERY_S = 2.0, 0.2
_WIDTH = 24


class Progress:
    """Reports `done` of `total`, the rate and the time left; prints nothing within the first five seconds.

    already: how much of the total was done before, which says nothing of the rate.
    """

    def __init__(self, label: str, total: int, already: int = 0) -> None:
        self._label, self._total, self._already = label, total, already
        self._start = time.monotonic()
        self._next = self._start + _QUIET_S
        self._bar = sys.stderr.isatty()
        self._shown = False

    def update(self, done: int) -> None:
        """Say that `done` of the total are done; a line at most every two seconds, a bar five times a second."""
        now = time.monotonic()
        ends_bar = self._shown and done >= self._total
        if (now < self._next and not ends_bar) or done <= self._already:
            return
        rate = (done - self._already) / (now - self._start)
        text = f"{done:,} of {self._total:,} ({_rate(rate)}/s, {_duration((self._total - done) / rate)} left)"
        if self._bar:
            full = round(_WIDTH * min(1.0, done / max(1, self._total)))
            sys.stderr.write(f"\r\x1b[K{self._label} [{'#' * full}{'.' * (_WIDTH - full)}] {text}")
            sys.stderr.flush()
            self._shown = True
            if done >= self._total:
                self.close()
        else:
            print(f"{self._label}: {text}", file=sys.stderr, flush=True)
        self._next = now + (_BAR_EVERY_S if self._bar else _LINE_EVERY_S)

    def close(self) -> None:
        """End the line of a bar, so that what follows begins a new one."""
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._shown = False


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
