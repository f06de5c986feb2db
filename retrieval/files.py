"""Files and folders that appear whole or not at all, their checksums, and locks between processes.

What is written is written aside, flushed to the disk, and renamed into place: a reader sees the old state or the new
one, never a part of it, and a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from models.errors import UserError

_PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_S = 0.2


class FileSystem:
    """The operations that writing consists of, in one place so that tests can make each of them fail."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def open(self, path: Path) -> int:
        """A descriptor of a new file, for writing; an existing one, or a link, is never written through."""
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
        shutil.rmtree(path)


DISK = FileSystem()


def write_new(path: Path, data: bytes, system: FileSystem = DISK) -> None:
    """Write a file that does not exist yet; it is on the disk when this returns. Raises OSError, also if it exists."""
    descriptor = system.open(path)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[system.write(descriptor, rest) :]
        system.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path, system: FileSystem = DISK) -> None:
    """Put the names in `folder` on the disk: a file that was renamed into it is there after a crash."""
    descriptor = system.open_folder(folder)
    try:
        system.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`, whole; `path` is as before where this fails. Raises OSError."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_new(aside, data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file `path` by `content` as indented JSON, as `write_bytes` does."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def writable_folder(out: Path, *, replace: bool = False) -> Path:
    """The folder that `whole_folder` would make of `out`, links followed; to be called before long work.

    Raises UserError where it would: `out` has content and `replace` is not set, is a mount point, or cannot be made.
    """
    real = Path(os.path.realpath(out))
    empty = not real.exists() or (real.is_dir() and not any(real.iterdir()))
    if not empty and not (replace and real.is_dir()):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out or remove it")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        probe = Path(tempfile.mkdtemp(prefix=f".{real.name}.partial-", dir=real.parent))
    except OSError as error:
        told = disk_trouble(error, real.parent)
        raise UserError(
            told or f"cannot make a folder beside {real} ({error.strerror}); choose another place"
        ) from None
    try:
        if empty and real.exists() and real != Path.cwd():
            # a mount point refuses this, and nothing else tells of every kind of mount
            probe.chmod(real.stat().st_mode)
            probe.rename(real)
    except OSError as error:
        raise UserError(
            f"{out} cannot be replaced as a whole ({error.strerror}), as a mount point cannot; give a folder in it, "
            f"such as {out / 'new'}"
        ) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return real


@contextlib.contextmanager
def whole_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `out` when all went well, and is removed on any error.

    It lies beside `out`, as `.OUT.partial-*`. Of a link, what it leads to is made. replace: an older `out` with content
    gives way to the new one. Raises UserError as `writable_folder`, and where the disk is full.
    """
    real = writable_folder(out, replace=replace)
    scratch = Path(tempfile.mkdtemp(prefix=f".{real.name}.partial-", dir=real.parent))
    try:
        with told_of_disk(real.parent, scratch):
            new = scratch / "new"
            new.mkdir()
            yield new
            _sync_tree(new)
            _exchange(new, real, scratch / "old")
            sync_folder(real.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def writable_file(out: Path) -> Path:
    """The file that `out` names, links followed, in a folder that is there; to be called before long work.

    Raises UserError: it is a folder, or no file can be made there.
    """
    real = Path(os.path.realpath(out))
    if real.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a file in it")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=real.parent):
            pass
    except OSError as error:
        told = disk_trouble(error, real.parent)
        raise UserError(told or f"cannot write {out} ({error.strerror}); choose another --out") from None
    return real


@contextlib.contextmanager
def told_of_disk(folder: Path, scratch: Path | None = None) -> Iterator[None]:
    """Raises UserError in place of an error that the disk of `folder` caused: it is full, or may not be written.

    scratch: a folder with what was written so far, which is removed then.
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
    """What to tell of an error because the disk of `folder` is full or may not be written; None for any other error.

    written: bytes that had been written and were given back. Libraries in C and Rust raise errors of their own.
    """
    number, text = getattr(error, "errno", None), str(error)
    shown = next((path for path in (folder, *folder.absolute().parents) if ".partial-" not in str(path)), folder)
    if number == errno.EROFS or os.strerror(errno.EROFS) in text:
        return f"{shown} is on a disk that may only be read; choose another place"
    full = number in _FULL or any(os.strerror(each) in text for each in _FULL)
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if not full and not (isinstance(error, OSError) and number is None and free < _PIECE):  # a short write of numpy
        return None
    needed = f"more than {written / 1e6:,.1f} MB are needed" if written else "more is needed than there is"
    left = f"{(free + written) / 1e6:,.1f} MB are free"
    return f"the disk of {shown} is full: {needed}, {left}; make room or choose another place"


def _sync_tree(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, out: Path, old: Path) -> None:
    """`new` becomes `out`; what was there becomes `old`, and comes back if that fails."""
    replaced = out.exists() and any(out.iterdir())
    if replaced:
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if replaced:
            old.rename(out)
        raise


class Digest:
    """Size and SHA-256 of bytes that pass by."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    def update(self, piece: bytes) -> None:
        self.size += len(piece)
        self._sha256.update(piece)

    @property
    def sha256(self) -> str:
        """Hex digest of all pieces so far."""
        return self._sha256.hexdigest()


def digest(data: bytes | str) -> str:
    """SHA-256 of `data` (text: in UTF-8), as a hex digest."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def digest_file(path: Path) -> Digest:
    """Size and SHA-256 of a file, read in pieces."""
    found = Digest()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            found.update(piece)
    return found


@contextlib.contextmanager
def locked(path: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`, among the processes of all nodes that see it; freed when its holder ends or is killed.

    patience: seconds to wait for the holder (None: as long as it takes). Raises filelock.Timeout after them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=-1 if patience is None else patience, poll_interval=_POLL_S):
        yield


@contextlib.contextmanager
def sole_writer(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """Be the only process that writes in `folder`.

    Waits `patience` seconds for the holder: workers whose driver was killed live on for some seconds.
    Raises UserError when another process still writes there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock", patience))
        except Timeout:
            raise UserError(
                f"another process is writing in {folder}: wait until it has ended, or use another name"
            ) from None
        yield
