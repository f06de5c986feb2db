"""metrics.jsonl survives what a run survives: torn lines, full disks, resumed runs."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from trainer.tracking import MetricsLog


def brief(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in lines]


def test_lines_come_back_with_what_was_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "runs" / "a" / "metrics.jsonl")
    before = time.time()
    log.append("start", 0, 0, {})
    log.append("epoch", 1, 10, {"loss": 0.5, "valid": {"HR@10": 0.1}, "worst": float("nan")})
    start, epoch = log.lines()
    assert start["event"] == "start"
    assert epoch["metrics"] == {"loss": 0.5, "valid": {"HR@10": 0.1}, "worst": None}
    assert (epoch["epoch"], epoch["step"]) == (1, 10)
    assert before - 1 < epoch["time"] < time.time() + 1
    with pytest.raises(ValueError, match="unknown event"):
        log.append("epcoh", 1, 1, {})  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.integers(0, 99), max_size=6), data=st.data())
def test_a_torn_end_is_cut_off_and_nothing_else(steps: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log = MetricsLog(path)
        ends = [0]
        for step in steps:
            log.append("epoch", step, step, {"loss": step / 3})
            ends.append(path.stat().st_size)
        line, back = data.draw(st.integers(0, len(steps))), data.draw(st.integers(0, 60))
        cut = max(ends[line] - back, 0)
        rubbish = data.draw(st.sampled_from([b"", b"\0\0\0", b"\0\0\n", b"{}\n", b'{"event": "ep']))
        path.write_bytes(path.read_bytes()[:cut] + (rubbish if cut in ends else b""))
        again = MetricsLog(path)
        whole = sum(end <= cut for end in ends) - 1
        assert brief(again.lines()) == [("epoch", step) for step in steps[:whole]]
        again.append("epoch", 7, 777, {})
        assert brief(again.lines())[-1] == ("epoch", 777)


def test_damage_in_the_middle_is_named_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(3):
        log.append("epoch", step, step, {})
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(raw[0] + b"rubbish\n" + raw[2])
    with pytest.raises(UserError, match=rf"damaged at byte {len(raw[0])}"):
        MetricsLog(path).lines()


def test_rewind_drops_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append("start", 0, 0, {})
    for epoch in (1, 2, 3):
        log.append("epoch", epoch, 10 * epoch, {"loss": 1 / epoch})
    log.append("test", 3, 30, {})
    log.append("end", 3, 30, {})
    untouched, whole = log.lines()[:3], log.path.read_bytes()
    log.rewind(30)
    assert brief(log.lines())[-1] == ("epoch", 30)
    log.rewind(25)
    assert log.lines() == untouched
    stamp = log.path.stat().st_mtime_ns
    log.rewind(25)
    assert log.path.stat().st_mtime_ns == stamp  # nothing to drop, nothing written
    aside = sorted(path.name for path in tmp_path.iterdir() if path != log.path)
    assert aside == ["metrics.before-resume-1.jsonl", "metrics.before-resume-2.jsonl"]
    assert (tmp_path / aside[0]).read_bytes() == whole
    assert len((tmp_path / aside[1]).read_bytes().splitlines()) == 4
    log.append("epoch", 3, 30, {})
    assert brief(MetricsLog(log.path).lines()) == [("start", 0), ("epoch", 10), ("epoch", 20), ("epoch", 30)]


def test_a_line_that_the_disk_refuses_leaves_the_file_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append("epoch", 1, 1, {})
    before = log.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append("epoch", 2, 2, {})
    assert log.path.read_bytes() == before
    log.append("epoch", 2, 2, {})
    assert brief(log.lines()) == [("epoch", 1), ("epoch", 2)]
