"""A progress line on standard error for anything that takes longer than five seconds."""

from __future__ import annotations

import sys
import time

_QUIET_S = 5.0
_EVERY_S = 2.0


class Progress:
    """Reports `done` of `total`, the rate and the time left; prints nothing within the first five seconds."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._start = time.monotonic()
        self._next = self._start + _QUIET_S

    def update(self, done: int) -> None:
        """Say that `done` of the total are done; a line is printed at most every two seconds."""
        now = time.monotonic()
        if now >= self._next and done:
            rate = done / (now - self._start)
            left = (self._total - done) / rate
            line = f"{self._label}: {done:,} of {self._total:,} ({rate:,.0f}/s, {left:.0f} s left)"
            print(line, file=sys.stderr, flush=True)
            self._next = now + _EVERY_S
