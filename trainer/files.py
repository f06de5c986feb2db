"""Small files written whole: under a temporary name, flushed to the disk, then renamed; one writer of a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as indented JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def sole_writer(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """Be the only process that writes in `folder`; the lock ends with the process that holds it, however that ends.

    Waits `patience` seconds for the holder: workers whose driver was killed outlive it by some seconds.
    Raises UserError when somebody else still writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        deadline = time.monotonic() + patience
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise UserError(f"another process is writing in {folder}: wait until it has ended, or use another name")
            time.sleep(0.2)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
