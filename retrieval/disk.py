"""Messages for disks that are full, fail, or may not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from models.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: the words of errors that a full disk causes; the last are SQLite's
_FULL_WORDS = (*map(os.strerror, _FULL), "database or disk is full")
#: less free space than this explains an error that does not name its reason
_NO_ROOM = 1 << 20


@contextlib.contextmanager
def told_of_disk(folder: Path, scratch: Path | None = None) -> Iterator[None]:
    """Raises UserError in place of an error that a disk caused: it is full, fails, or may not be written.

    folder: where errors happen that name no file. scratch: a folder with what was written so far, which is removed
    then.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        written = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) if scratch else 0
        full = disk_trouble(error, folder, written)  # before anything is removed: some errors only show as no room
        if full is None:
            raise
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(f"{full}. Nothing half-made is left" if scratch else full) from error


def disk_trouble(error: BaseException, folder: Path, written: int = 0) -> str | None:
    """What to tell of an error because its disk is full, fails or may not be written; None for any other error.

    folder: where the error happened, if the error itself names no file. written: bytes that had been written and were
    given back. Libraries in C and Rust raise errors of their own.
    """
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        folder = Path(error.filename).parent
    shown = next((path for path in (folder, *folder.absolute().parents) if ".partial-" not in str(path)), folder)
    if number == errno.EROFS or os.strerror(errno.EROFS) in text:
        return f"{shown} is on a disk that may only be read; choose another place"
    if number == errno.EIO or os.strerror(errno.EIO) in text:
        return f"the disk of {shown} does not work (input/output error); look at the system's log, choose another place"
    full = number in _FULL or any(words in text for words in _FULL_WORDS)
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if not full and not (isinstance(error, OSError) and number is None and free < _NO_ROOM):  # a short write of numpy
        return None
    needed = f"more than {written / 1e6:,.1f} MB are needed" if written else "more is needed than there is"
    left = f"{(free + written) / 1e6:,.1f} MB are free"
    return f"the disk of {shown} is full: {needed}, {left}; make room or choose another place"
