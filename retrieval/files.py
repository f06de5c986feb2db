"""Files and folders that appear whole or not at all, their checksums, and locks between processes.

We write to a temporary place beside the target, flush it to the disk, and rename it to the target. So a reader sees
the old state or the new one, never a part of it, and a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from models.errors import UserError

_PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_S = 0.2
_LOCK = ".mealrec-lock"
#: locks of `sole_maker` that this process holds
_HELD: set[Path] = set()
# fcntl.h, linux/fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


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
        shutil.rmtree(path)


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
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_new(aside, data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporaries(*names: str) -> str:
    """A regular expression for what killed calls of `write_bytes` leave of files with these names (expressions)."""
    return rf"\.({'|'.join(names)})\.[0-9a-f]{{8}}\.tmp"


def remove_own(folder: Path, own: str) -> None:
    """Remove the files of `folder` whose whole name matches the regular expression `own`; anything else stays.

    The folder goes as well if that leaves it empty. Nothing happens where there is no such folder.
    """
    if not folder.is_dir():
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


def writable_folder(out: Path, *, replace: bool = False) -> Path:
    """The folder that `whole_folder` would make of `out`, links followed; to be called before long work.

    Raises UserError where it would: `out` has content and `replace` is not set, is a mount point, or cannot be made.
    """
    real = Path(os.path.realpath(out))
    if _children_of_killed_makers(real) is None and not (replace and real.is_dir()):
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
        if real.is_dir() and not any(real.iterdir()) and real != Path.cwd():
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
    """Give a temporary folder to write into. It becomes `out` at the end of the block, and is removed on any error.

    The temporary folder is beside `out`, as `.OUT.partial-*`; if `out` is a link, it is beside the folder that the link
    leads to. replace: whether an `out` with content is replaced; another process that replaces it is waited for, a
    minute at most. Raises UserError as `writable_folder` and `sole_maker`, and if the disk is full.
    """
    real = writable_folder(out, replace=replace)
    with (
        sole_maker(real, replace=replace, patience=60.0 if replace else 0.0),
        _beside(real, "partial") as scratch,
        told_of_disk(real.parent, scratch),
    ):
        new = scratch / "new"
        new.mkdir()
        yield new
        _sync_tree(new)
        _put_in_place(new, real, former(real))
        sync_folder(real.parent)


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder `.OUT.features-*` beside `out` for what is needed while `out` is made; removed in any case.

    Raises UserError as `sole_maker`.
    """
    with sole_maker(out), _beside(out, "features") as scratch:
        yield scratch


@contextlib.contextmanager
def _beside(out: Path, purpose: str) -> Iterator[Path]:
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.{purpose}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot make a folder beside {out} ({error.strerror}); choose another place") from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def sole_maker(out: Path, *, replace: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Be the only process that makes the folder `out`, which is absent or empty unless `replace`.

    The lock is a file `.OUT.mealrec-lock` beside `out`, removed at the end; who holds it may take it again. What
    killed makers of `out` left is removed: their lock is free.
    Raises UserError where `out` has content and `replace` is not set, where another process still makes it after
    `patience` seconds, or where nothing can be made beside it.
    """
    lock = out.absolute().with_name(f".{out.absolute().name}{_LOCK}")
    if lock in _HELD:
        yield
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(lock, patience)
    except OSError as error:
        raise UserError(f"cannot make a folder beside {out} ({error.strerror}); choose another place") from None
    if descriptor is None:
        raise UserError(f"another process is making {out}: wait until it has ended, or choose another place")
    _HELD.add(lock)
    try:
        _sweep(out)
        if not replace:
            _require_free(out)
        yield
    finally:
        _HELD.discard(lock)
        lock.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it is gone
        os.close(descriptor)


def _take(lock: Path, patience: float) -> int | None:
    """A descriptor of the lock file, locked; None where another process still holds it after `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):  # held; or removed by its holder since it was opened
            pass
        os.close(descriptor)
        if time.monotonic() > until:
            return None
        time.sleep(_POLL_S)


def _sweep(out: Path) -> None:
    """Remove what killed makers of `out` left beside it; the caller holds the lock of `out`."""
    left = re.compile(rf"\.{re.escape(out.name)}\.(partial|features)-[a-z0-9_]{{8}}")
    for path in out.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    older = former(out)
    if older.exists() and out.exists():
        shutil.rmtree(older, ignore_errors=True)


def _children_of_killed_makers(out: Path) -> set[str] | None:
    """Names of the folders in `out` of which killed makers left something; None if `out` has other content too."""
    if not out.exists():
        return set()
    ours = re.compile(rf"\.(.+)({re.escape(_LOCK)}|\.(partial|features)-[a-z0-9_]{{8}})")
    matches = [ours.fullmatch(path.name) for path in out.iterdir()] if out.is_dir() else [None]
    return {match[1] for match in matches if match} if all(matches) else None


def _require_free(out: Path) -> None:
    """`out` is absent, or a folder without content; what killed makers of folders in it left is removed."""
    children = _children_of_killed_makers(out)
    if children is None:
        raise UserError(f"{out} exists and is not an empty folder; choose another --out or remove it")
    for child in children:
        with sole_maker(out / child, replace=True):
            pass


def former(out: Path) -> Path:
    """Where the older content of `out` is for a moment, on file systems that cannot exchange two folders."""
    return out.with_name(f".{out.name}.former")


def present(out: Path) -> Path:
    """The folder to read: `out`, or its older content where a kill came between the two steps of replacing it."""
    return former(out) if not out.exists() and former(out).exists() else out
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


def _put_in_place(new: Path, out: Path, older: Path) -> None:
    """`new` becomes `out`; at every moment `out` or `older` is readable (`present`), if there was an older one."""
    if out.exists() and any(out.iterdir()):
        if exchange(new, out):  # what was there is now where the new one was, and is removed with it
            return
        out.rename(older)
    try:
        new.rename(out)
    except OSError:
        if older.exists() and not out.exists():
            older.rename(out)
        raise
    shutil.rmtree(older, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once (Linux, renameat2); False where the system or its file system cannot do it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


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
    """Hold the lock file `path` for the block. One process at a time can hold it, of all nodes that see the file.

    A lock becomes free when its holder ends, also when it is killed. patience: seconds to wait for it; None waits
    without limit. Raises filelock.Timeout if it is not free by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=-1 if patience is None else patience, poll_interval=_POLL_S):
        yield


@contextlib.contextmanager
def sole_writer(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """Make sure that no other process writes in `folder` during the block.

    Waits up to `patience` seconds for another writer to end: workers of a killed driver run on for some seconds.
    Raises UserError if another process still writes there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock", patience))
        except Timeout:
            raise UserError(
                f"another process is writing in {folder}: wait until it has ended, or use another name"
            ) from None
        yield
