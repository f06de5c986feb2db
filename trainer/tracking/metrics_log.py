"""`metrics.jsonl`: what happened in a run, one JSON object a line. Whatever else shows metrics mirrors this file.

A line has `event`, `epoch`, `step`, `time` (Unix seconds) and `metrics` (names to numbers, possibly nested).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from models.errors import UserError
from retrieval.files import refuse_link, write_bytes

Event = Literal["start", "epoch", "test", "end"]
_FINAL = ("test", "end")


class MetricsLog:
    """The metrics file of a run; one writer (rank 0). A line torn by a kill is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_link(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, b"")
        data = path.read_bytes()
        whole = _whole(data)
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def append(self, event: Event, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line; it is on the disk when this returns.

        step: optimizer steps done so far. Write an epoch's line before its checkpoint is committed, so that no
        resume point lies behind a line that was never written. Non-finite numbers are written as null.
        Raises OSError when the disk does not take the line; the file is then as before.
        """
        if event not in get_args(Event):
            raise ValueError(f"unknown event {event!r}")
        line = {"event": event, "epoch": epoch, "step": step, "time": round(time.time(), 3), "metrics": _json(metrics)}
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                data = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)
                error.filename = str(self.path)  # for the message: which disk is full
                raise

    def rewind(self, step: int) -> None:
        """Drop what a run that resumes at `step` will do again: later lines, and the test and the end.

        The file as it was is kept beside it, as metrics.before-resume-N.jsonl, N counting from 1.
        """
        lines = self.lines()
        kept = [line for line in lines if line["step"] <= step and line["event"] not in _FINAL]
        if len(kept) < len(lines):
            self._set_aside()
            write_bytes(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def _set_aside(self) -> None:
        names = (self.path.with_name(f"{self.path.stem}.before-resume-{n}{self.path.suffix}") for n in count(1))
        write_bytes(next(path for path in names if not path.exists()), self.path.read_bytes())

    def lines(self) -> list[dict[str, Any]]:
        """All lines, oldest first. Raises UserError, naming the line, if the file was damaged."""
        return read_lines(self.path, 0)[0]


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Lines that are complete from byte `offset` on, and the offset behind them, to go on from.

    Raises UserError with file and byte if a complete line is not an object with the fields of a line.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    lines = []
    for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        line = _parse(raw)
        if line is None:
            raise UserError(f"{path} is damaged at byte {offset}: {raw[:60]!r}; remove that line to go on")
        lines.append(line)
        offset += len(raw)
    return lines, offset


def _whole(data: bytes) -> bytes:
    """`data` without a torn last line; no more than one line can be torn, as each is synced before the next."""
    end = data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
    return data[:end] if end < len(data) or _parse(data[last:end]) else data[:last]


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):  # bad UTF-8 and 200,000 brackets included
        return None
    fields: dict[str, type | tuple[type, ...]] = {
        "event": str,
        "epoch": int,
        "step": int,
        "time": (int, float),
        "metrics": dict,
    }
    good = isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in fields.items())
    return line if good else None


def _json(value: Any) -> Any:
    """`value` in strict JSON, which has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(key): _json(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
