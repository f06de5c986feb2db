"""What a worker of Ray prints, copied to a file of the run, and from there to the driver's stdout."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cluster import console

_POLL_S = 0.2


class Tee:
    """Writes text to both streams; all other attributes are those of the first."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self.first, self._second = first, second

    def write(self, text: str) -> int:
        self._second.write(console.harmless(text))  # a file that a user looks at in a terminal
        return self.first.write(text)

    def flush(self) -> None:
        self._second.flush()
        self.first.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)


@contextmanager
def followed(path: Path) -> Iterator[None]:
    """Copy to stdout whatever is appended to the file, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, path.stat().st_size, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(path: Path, start: int, done: threading.Event) -> None:
    # with --quiet a worker prints nothing but warnings, which are no results
    output = sys.stdout if console.shows(console.Verbosity.BRIEF) else sys.stderr
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        while True:
            last = done.wait(_POLL_S)
            if text := file.read():
                print(text, end="", file=output, flush=True)
            if last:
                return
