"""Notice that another file has taken the place of one: a new export, or a link that points to another folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_POLL_S = 2.0
#: after a reload that failed, the next one waits twice as long, at most so many seconds
_LONGEST_S = 60.0


class Watched:
    """A file, as it is when this is made. Looked at through links, and by its own identity, size and time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._identity()

    def follow(self, reload: Callable[[], bool], poll_s: float = _POLL_S) -> None:
        """Call `reload` whenever the file has changed, again and again until it says that it succeeded; never ends."""
        wait = poll_s
        while True:
            time.sleep(wait)
            now = self._identity()
            if now in (self._seen, None):  # a file that is gone is about to be replaced
                wait = poll_s
            elif reload():
                self._seen, wait = now, poll_s
            else:
                wait = min(2 * wait, _LONGEST_S)

    def _identity(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
