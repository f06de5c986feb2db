"""Progress of tasks that take longer than five seconds, on standard error: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from cluster import console
from trainer.durations import in_words

_QUIET_S = 5.0
_LINE_EVERY_S, _BAR_EVERY_S = 2.0, 0.2


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no tqdm thread, which would redraw bars without updates: threads make forks unsafe


class Progress:
    """Reports how much of `total` is done, the rate and the time left. Prints nothing in the first five seconds, and
    nothing at all with --quiet.

    already: the part of the total that was done earlier and does not count for the rate.
    """

    def __init__(self, label: str, total: int, already: int = 0) -> None:
        self._label, self._total, self._already = label, total, already
        self._start = time.monotonic()
        self._next_line = self._start + _QUIET_S
        self._bar = None
        self._shown = console.shows(console.Verbosity.NORMAL)
        if self._shown and sys.stderr.isatty():
            self._bar = _Bar(
                desc=console.in_a_line(label), total=total, initial=already, delay=_QUIET_S, mininterval=_BAR_EVERY_S,
                miniters=1, smoothing=0, dynamic_ncols=True, file=console.terminal(),
            )  # fmt: skip

    def update(self, done: int) -> None:
        """Report that `done` of the total are done. Prints at most a line every two seconds, or updates the bar."""
        done = min(done, self._total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= self._total:
                self.close()
            return
        now = time.monotonic()
        if not self._shown or now < self._next_line or done <= self._already:
            return
        rate = (done - self._already) / (now - self._start)
        left = in_words((self._total - done) / rate)
        console.note(f"{self._label}: {done:,} of {self._total:,} ({_rate(rate)}/s, {left} left)")
        self._next_line = now + _LINE_EVERY_S

    def close(self) -> None:
        """End the line of the bar, so that further output starts on a new line."""
        if self._bar is not None:
            self._bar.close()


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
