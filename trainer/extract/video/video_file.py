"""The bytes of a video: any part of a file at a path or URL, read within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from models.errors import UserError
from trainer.data.storage import is_url, open_file, sent_elsewhere
from trainer.extract.pipeline.protocols import Unusable

T = TypeVar("T")

#: pauses in seconds before a second and a third try at a network that fails
PAUSES = (0.2, 0.8)
#: packages of fsspec's clients whose errors have no common base, and the HTTP answers that are worth another try
CLIENTS = frozenset({"aiohttp", "botocore", "aiobotocore", "gcsfs", "google"})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
COPIED_AT_ONCE = 1 << 20


class Deadline:
    """The time that one video may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise Unusable once the time is over."""
        if time.monotonic() > self._end:
            raise Unusable(f"took longer than {self.seconds:g} s")

    def wait_for(self, call: Callable[[], T]) -> T:
        """The result of a call that may hang on a network; it cannot be stopped, so its thread is abandoned."""
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def answer() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:  # raised again below, in the thread that waits
                answers.put((None, error))

        threading.Thread(target=answer, daemon=True).start()
        try:
            result, error = answers.get(timeout=max(0.0, self._end - time.monotonic()))
        except queue.Empty:
            raise Unusable(f"took longer than {self.seconds:g} s") from None
        if error is not None:
            raise error
        return cast(T, result)

    def persist(self, call: Callable[[], T]) -> T:
        """The result of `call`, tried again after a temporary network failure. Raises Unusable after the last try."""
        for pause in (*PAUSES, None):
            try:
                return call()
            except Exception as error:
                reason, passing = _trouble(error)
                if pause is None or not passing:
                    raise Unusable(reason) from error
            self.wait_for(lambda seconds=pause: time.sleep(seconds))  # type: ignore[misc]
        raise AssertionError("unreachable")


class VideoFile:
    """What FFmpeg reads from: a file with random access that ends with the deadline.

    Its errors are kept in `failure`, and FFmpeg is told that the file ends: an exception that goes through FFmpeg may
    be dropped, or come out of a later and unrelated call.
    """

    def __init__(self, file: IO[bytes], deadline: Deadline, remote: bool) -> None:
        self.failure: Exception | None = None
        self._file = file
        self._deadline = deadline
        self._remote = remote

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end, and none once something has failed."""
        if self.failure is not None:
            return b""
        try:
            self._deadline.check()
            if not self._remote:
                return self._file.read(size)
            return self._deadline.persist(lambda: self._deadline.wait_for(lambda: self._file.read(size)))
        except OSError as error:
            self.failure = Unusable(_trouble(error)[0])
        except Exception as error:
            self.failure = error
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in bytes; returns it, or -1 for a place before the start (damaged files ask for such)."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def tell(self) -> int:
        """The position in bytes."""
        return self._file.tell()

    def check(self) -> None:
        """Raise what has failed, or Unusable once the time is over."""
        if self.failure is not None:
            raise self.failure
        self._deadline.check()


@contextlib.contextmanager
def open_video_file(source: str, deadline: Deadline, max_bytes: int) -> Iterator[VideoFile]:
    """The file at a local path or URL; one on a server without range requests is copied to a temporary file.

    Raises Unusable: missing, empty, not a regular file, unreadable, too large to be copied, or too slow.
    """
    local = source.removeprefix("file://")
    remote = is_url(local)
    if not remote:
        _check_regular(Path(local))
    with contextlib.ExitStack() as stack:
        if remote:
            file = deadline.persist(lambda: _with_random_access(source, deadline, max_bytes))
        else:
            file = deadline.persist(lambda: _opened(local))
        stack.callback(file.close)
        opened = VideoFile(file, deadline, remote)
        empty = not opened.read(1)
        opened.check()
        if empty:
            raise Unusable("empty file")
        opened.seek(0)
        yield opened


def _check_regular(path: Path) -> None:
    """A pipe or a device would block or never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise Unusable(_trouble(error)[0] if isinstance(error, OSError) else "no such file") from None
    if stat.S_ISDIR(mode):
        raise Unusable("a folder, not a file")
    if not stat.S_ISREG(mode):
        raise Unusable("not a regular file")


def _opened(source: str) -> IO[bytes]:
    try:
        return open_file(source)
    except UserError as error:
        cause = error.__context__  # open_file wraps the original error; whether to try again depends on that one
        if cause is None or isinstance(cause, ImportError):
            raise
        raise cause from cause.__cause__  # where fsspec keeps the answer of the server


def _with_random_access(source: str, deadline: Deadline, max_bytes: int) -> IO[bytes]:
    """The remote file itself if any byte of it can be read alone, otherwise a local copy."""
    file: Any = deadline.wait_for(lambda: _opened(source))
    if file.size is None:
        return _copied(file, deadline, max_bytes)
    if file.size == 0:
        return cast("IO[bytes]", file)
    try:
        file.seek(file.size - 1)
        deadline.wait_for(lambda: file.read(1))
        file.seek(0)
        return cast("IO[bytes]", file)
    except ValueError as error:  # fsspec's, for a server that answers with the whole file
        if "range requests" not in str(error):
            raise
    if file.size > max_bytes:
        raise Unusable(f"more than {max_bytes} bytes on a server without range requests")
    return _copied(deadline.wait_for(lambda: file.fs.open(file.path, block_size=0)), deadline, max_bytes)


def _copied(stream: IO[bytes], deadline: Deadline, max_bytes: int) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed by open_video_file
    try:
        while block := deadline.wait_for(lambda: stream.read(COPIED_AT_ONCE)):
            copy.write(block)
            if copy.tell() > max_bytes:
                raise Unusable(f"more than {max_bytes} bytes without an end")
    except BaseException:
        copy.close()
        raise
    finally:
        stream.close()
    copy.seek(0)
    return copy


def _trouble(error: Exception) -> tuple[str, bool]:
    """The reason behind an error of a file or network, and whether it may be temporary; raises any other error."""
    if elsewhere := sent_elsewhere(error):
        return str(elsewhere), False
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    status = next((s for e in chain if isinstance(s := getattr(e, "status", getattr(e, "code", None)), int)), None)
    if status in (404, 410):
        return "no such file", False
    if status is not None:
        return f"HTTP {status}", status in PASSING
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _unreachable(chain) or ("no such file", False)
    if isinstance(error, PermissionError):
        return "may not be read", False
    if type(error).__module__.split(".")[0] in CLIENTS or isinstance(error, ConnectionError | asyncio.TimeoutError):
        return f"network: {type(error).__name__}", True
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}", False
    raise error


def _unreachable(chain: list[BaseException]) -> tuple[str, bool] | None:
    """The reason where a server was not reached, which fsspec reports as a file that is not found; else None."""
    network = next((e for e in chain[1:] if type(e).__module__.split(".")[0] in CLIENTS), None)
    return None if network is None else (f"network: {type(network).__name__}", True)
