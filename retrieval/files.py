"""Files that appear whole or not at all, checksums, and locks between processes. Folders are in `folders.py`.

We write to a temporary file beside the target, flush it to the disk, and rename it to the target. So a reader sees
the old state or the new one, never a part of it, and a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from models.errors import UserError

_PIECE = 1 << 20
_POLL_S = 0.2


class FileSystem:
    """The file operations that writing uses, in one class, so that tests can make each of them fail."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def open(self, path: Path) -> int:
        """Create a file and open it for writing. Raises FileExistsError if `path` is already a file or a link."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def open_folder(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with its content, or a file; of a link, the link alone and not what it leads to."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


DISK = FileSystem()


def write_new(path: Path, data: bytes, system: FileSystem = DISK) -> None:
    """Write a new file and flush it to the disk. Raises OSError, also if the file exists already."""
    descriptor = system.open(path)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[system.write(descriptor, rest) :]
        system.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path, system: FileSystem = DISK) -> None:
    """Flush the file names of `folder` to the disk, so that a file renamed into it is still there after a crash."""
    descriptor = system.open_folder(folder)
    try:
        system.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of file `path` by `data`. If this fails, `path` is unchanged. Raises OSError."""
    with _replacing(path) as new:
        write_new(new, data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path for a file that is too large for `write_bytes`; it replaces `path` at the end of the block.

    If the block fails, `path` is unchanged and the new file is removed; what killed calls left is removed by the next
    one. Raises OSError.
    """
    _sweep(path)
    with _replacing(path) as new:
        descriptor = _own(new)
        try:
            yield new
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _own(new: Path) -> int:
    """A descriptor of the new file, locked: until this process ends, `_sweep` of others leaves the file alone."""
    while True:
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if new.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # it was swept before it was locked


def _sweep(path: Path) -> None:
    """Remove files beside `path` that killed calls of `whole_file` left: nobody holds them."""
    for left in path.parent.iterdir():
        if not re.fullmatch(temporaries(re.escape(path.name)), left.name):
            continue
        if left.is_symlink() or not left.is_file():  # none of ours has such a name
            continue
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except FileNotFoundError:  # another call has swept it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
        except BlockingIOError:  # another process is writing it
            pass
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path`; what is written and flushed there in the block becomes `path`.

    An OSError names `path`, so that a message can say which disk is full: those of `os.write` name no file.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        aside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a disk that fails: the first error is the one to tell
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or error.filename == str(aside)):
            error.filename, error.filename2 = str(path), None
        raise
    sync_folder(path.parent)


def temporaries(*names: str) -> str:
    """A regular expression for what killed calls of `write_bytes` leave of files with these names (expressions)."""
    return rf"\.({'|'.join(names)})\.[0-9a-f]{{8}}\.tmp"


def remove_own(folder: Path, own: str) -> None:
    """Remove the files of `folder` whose whole name matches the regular expression `own`; anything else stays.

    The folder goes as well if that leaves it empty. Nothing happens where there is no such folder, or a link to one.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in list(folder.iterdir()):
        if re.fullmatch(own, path.name) and not path.is_dir():
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Replace the content of file `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the content of file `path` by `content` as indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(content, indent=1) + "\n")


class Digest:
    """Size and SHA-256 of bytes that are added piece by piece."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    def update(self, piece: bytes) -> None:
        """Add the next piece."""
        self.size += len(piece)
        self._sha256.update(piece)

    @property
    def sha256(self) -> str:
        """Hex digest of all pieces so far."""
        return self._sha256.hexdigest()


def digest(data: bytes | memoryview | str) -> str:
    """SHA-256 of `data` (text: in UTF-8), as a hex digest."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def digest_file(path: Path) -> Digest:
    """Size and SHA-256 of a file, read in pieces."""
    found = Digest()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            found.update(piece)
    return found


def refuse_link(path: Path) -> None:
    """For a file that is written where it is. Raises UserError if `path` is a symbolic link: what it leads to, anywhere
    on the disk, would be changed. (A folder from somebody else may hold one.)"""
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to {path.readlink()}, and what it leads to would be changed; remove the link"
        )


@contextlib.contextmanager
def locked(path: Path, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the block. One process at a time can hold it, of all nodes that see the file.

    A lock becomes free when its holder ends, also when it is killed. wait_s: seconds to wait for it; None waits
    without limit. Raises filelock.Timeout if it is not free by then, and UserError if it is a link.
    """
    refuse_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=-1 if wait_s is None else wait_s, poll_interval=_POLL_S):
        yield


@contextlib.contextmanager
def sole_writer(folder: Path, wait_s: float = 60.0) -> Iterator[None]:
    """Make sure that no other process writes in `folder` during the block.

    Waits up to `wait_s` seconds for another writer to end: workers of a killed driver run on for some seconds.
    Raises UserError if another process still writes there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock", wait_s))
        except Timeout:
            raise UserError(
                f"another process is writing in {folder}: wait until it has ended, or use another name"
            ) from None
        yield
