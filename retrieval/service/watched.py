"""Notice that another model has taken the place of one: a new export, a link that points elsewhere, a moved alias."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from pathlib import Path

#: what tells one model from another; None while that cannot be found out
Identity = Callable[[], Hashable | None]
POLL_S = 2.0
#: after a reload that failed, the next one waits twice as long, at most so many seconds
_LONGEST_S = 60.0


def of_file(path: Path) -> Identity:
    """A file, looked at through links: by its own identity, size and time."""

    def identity() -> Hashable | None:
        try:
            found = path.stat()
        except OSError:
            return None  # a file that is gone is about to be replaced
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    return identity


class Watched:
    """A place for models, with the model that is there when this is made."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._seen = identity()

    def follow(self, reload: Callable[[], bool], poll_s: float = POLL_S) -> None:
        """Call `reload` whenever the model is another, again and again until it says that it succeeded; never ends."""
        wait = poll_s
        while True:
            time.sleep(wait)
            now = self._identity()
            if now in (self._seen, None):
                wait = poll_s
            elif reload():
                self._seen, wait = now, poll_s
            else:
                wait = min(2 * wait, _LONGEST_S)
