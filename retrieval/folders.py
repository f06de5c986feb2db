"""Folders that appear whole or not at all, made by one process at a time.

A folder is written beside its place, flushed to the disk, and renamed to its place. So a reader sees the old folder or
the new one, never a part of it, and a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from models.errors import UserError
from retrieval.disk import disk_trouble, told_of_disk
from retrieval.files import sync_folder

_POLL_S = 0.2
_LOCK = ".mealrec-lock"
#: locks of `sole_maker` that this process holds
_HELD: set[Path] = set()
# fcntl.h, linux/fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


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
def whole_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write into. It becomes `out` at the end of the block, and is removed on any error.

    The temporary folder is beside `out`, as `.OUT.partial-*`; if `out` is a link, it is beside the folder that the link
    leads to. replace: whether an `out` with content is replaced; another process that replaces it is waited for, a
    minute at most. Raises UserError as `writable_folder` and `sole_maker`, and if the disk is full.
    """
    real = writable_folder(out, replace=replace)
    with (
        sole_maker(real, replace=replace, wait_s=60.0 if replace else 0.0),
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
def sole_maker(out: Path, *, replace: bool = False, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only process that makes the folder `out`, which is absent or empty unless `replace`.

    The lock is a file `.OUT.mealrec-lock` beside `out`, removed at the end; who holds it may take it again. What
    killed makers of `out` left is removed: their lock is free.
    Raises UserError where `out` has content and `replace` is not set, where another process still makes it after
    `wait_s` seconds, or where nothing can be made beside it.
    """
    lock = out.absolute().with_name(f".{out.absolute().name}{_LOCK}")
    if lock in _HELD:
        yield
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(lock, wait_s)
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


def _take(lock: Path, wait_s: float) -> int | None:
    """A descriptor of the lock file, locked; None where another process still holds it after `wait_s` seconds."""
    until = time.monotonic() + wait_s
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
    for path in _scratch(out):
        shutil.rmtree(path, ignore_errors=True)


def left_by_killed_makers(folder: Path) -> dict[Path, list[Path]]:
    """What killed makers of folders in `folder` left there: the folder that one was making -> its files and folders.

    Only what this user's processes left, and only where the maker's lock is free. `sweep` removes it.
    """
    found = {}
    for lock in folder.glob(f".*{_LOCK}"):
        out = lock.with_name(lock.name.removesuffix(_LOCK)[1:])
        with contextlib.suppress(OSError):  # not ours to open, or removed by its maker meanwhile
            if lock.stat().st_uid == os.geteuid() and _is_free(lock):
                found[out] = [*_scratch(out), lock]
    return found


def sweep(out: Path) -> None:
    """Remove what killed makers of `out` left beside it. Raises UserError if another process makes it now."""
    with sole_maker(out, replace=True):
        pass


def _is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _scratch(out: Path) -> list[Path]:
    """Folders beside `out` that its makers wrote to, and its older content where the new one is in place."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.(partial|features)-[a-z0-9_]{{8}}")
    older = [former(out)] if former(out).exists() and out.exists() else []
    return [path for path in out.parent.iterdir() if ours.fullmatch(path.name)] + older


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
