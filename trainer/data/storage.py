"""Files at a path or URL, folders that appear whole or not at all, and a lock between processes of one node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import fsspec

from models.errors import UserError

#: URL schemes that are opened; everything else is a local path, never a command (webdataset's `pipe:` stays off)
SCHEMES = ("file", "http", "https", "s3", "gs")


def is_url(source: str) -> bool:
    """Whether `source` is a URL (scheme://...) and not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def join(root: str, name: str) -> str:
    """The path or URL of file `name` of the dataset at `root`."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root) / name)


def open_file(source: str) -> IO[bytes]:
    """A binary stream over the file at a local path or a URL.

    Raises UserError: a scheme that is not one of SCHEMES, a missing package for it, a file that cannot be opened.
    """
    if is_url(source) and (source.split("://")[0].lower() not in SCHEMES or "::" in source):
        raise UserError(f"{source}: only {', '.join(SCHEMES)} URLs and local paths are read")
    try:
        if not is_url(source):
            return Path(source).open("rb")
        return cast("IO[bytes]", fsspec.open(source, "rb").open())
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # each protocol's client has errors of its own; all mean that this cannot be opened
        raise UserError(f"cannot open {source} ({type(error).__name__}: {error}); is it there and readable?") from None


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that becomes `out` on success and is removed on any error.

    Raises UserError where `out` exists and is not an empty folder, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out or remove it")
    work = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make {work} ({error.strerror}); choose another --out") from None
    try:
        yield work
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


@contextlib.contextmanager
def node_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` among the processes of this node; waits for the holder; freed if it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
