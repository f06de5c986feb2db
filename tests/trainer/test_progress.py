"""Progress on standard error: nothing at first, then lines in a file, or a bar on a terminal."""

from __future__ import annotations

import io
import re
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
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
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
    for second, done in ((4, 3), (6, 6), (6.1, 7), (100, 12), (100.1, 30)):
        clock[0] = 100.0 + second
        shown.update(done)
    shown.close()
    frames = written.getvalue().split("\r")
    assert [re.sub(r"\|.*\|", "", frame) for frame in frames if frame.strip()] == [
        "reading:  25% 6/24 [00:06<00:18,  1.00it/s]",
        "reading:  50% 12/24 [01:40<01:40,  8.33s/it]",
        "reading: 100% 24/24 [01:40<00:00,  4.17s/it]\n",
    ]


def test_a_short_task_shows_no_bar_and_what_was_done_before_counts_for_no_rate(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    short = Progress("reading", 2)
    clock[0] += 4
    short.update(2)
    assert written.getvalue() == ""
    shown = Progress("reading", 1000, already=900)
    clock[0] += 10
    shown.update(950)
    assert "95%" in written.getvalue()
    assert "00:10<00:10,  5.00it/s" in written.getvalue()
