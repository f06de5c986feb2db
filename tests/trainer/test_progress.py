"""Progress on standard error: nothing at first, lines into a file, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from trainer import progress
from trainer.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_nobody_looks(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    shown = Progress("reading", 1000, already=100)
    for second, done in ((4, 200), (6, 100), (10, 300), (11, 320), (12, 340)):
        clock[0] = 100.0 + second
        shown.update(done)
    shown.close()
    assert written.getvalue().splitlines() == [
        "reading: 300 of 1,000 (20/s, 35 s left)",
        "reading: 340 of 1,000 (20/s, 33 s left)",
    ]


def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    shown = Progress("reading", 24)
    for second, done in ((6, 6), (6.1, 7), (100, 12), (100.1, 24)):
        clock[0] = 100.0 + second
        shown.update(done)
    shown.close()
    frames = written.getvalue().replace("\x1b[K", "").split("\r")
    assert frames == [
        "",
        "reading [" + "#" * 6 + "." * 18 + "] 6 of 24 (1/s, 18 s left)",
        "reading [" + "#" * 12 + "." * 12 + "] 12 of 24 (0.12/s, 100 s left)",
        "reading [" + "#" * 24 + "] 24 of 24 (0.24/s, 0 s left)\n",
    ]
