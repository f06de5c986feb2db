"""SIGTERM as a notice to stop: work that can be kept is kept first, then `Stopped` is raised.

Kubernetes and spot nodes send it some seconds before they end a process. Python runs handlers in the main thread alone,
and workers of Ray Train train in another one; so a handler only notes it while a training loop `held` it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import console
from cluster.failures import Stopped

_POLL_S = 0.5


class _Notice:
    """Of this process. request: a file that asks for a stop as SIGTERM does, made by a driver for its workers."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.held = False
        self.request: Path | None = None
        self.looked = 0.0


_NOTICE = _Notice()


def listen() -> None:
    """For a worker of Ray, called in its main thread: SIGTERM is noted.

    That thread is seldom in Python, so a handler may be late. The number of the signal is in a pipe at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _note)
    threading.Thread(target=_read_numbers, args=(reading,), daemon=True, name="SIGTERM").start()


def _note(number: int, frame: object) -> None:
    del number, frame
    _NOTICE.given.set()


def _read_numbers(pipe: int) -> None:
    while numbers := os.read(pipe, 64):
        if signal.SIGTERM in numbers:
            _NOTICE.given.set()


@contextmanager
def listening() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the block, or is noted where it is `held`; in the main thread alone."""
    _NOTICE.given.clear()
    with _handled(_hold_or_end):
        yield


@contextmanager
def passed_on(request: Path) -> Iterator[None]:
    """For a driver: SIGTERM makes the file `request`, which its workers `watch`. In the main thread, as `listening`."""

    def ask(number: int, frame: object) -> None:
        del number, frame
        request.touch()
        console.note("SIGTERM: the workers are asked to save their work and stop", console.Verbosity.BRIEF)

    try:
        with _handled(ask):
            yield
    finally:
        request.unlink(missing_ok=True)


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def watch(request: Path | None) -> None:
    """Take the file `request`, once it is there, for a notice as well."""
    _NOTICE.request = request


@contextmanager
def held() -> Iterator[None]:
    """Ask `noticed` in the block, as often as a stop is possible: nothing is interrupted there."""
    _NOTICE.held = True
    try:
        yield
    finally:
        _NOTICE.held = False


def noticed() -> bool:
    """Whether this process was told to stop. Cheap enough for every training step."""
    now = time.monotonic()
    if _NOTICE.request is not None and now - _NOTICE.looked > _POLL_S:
        _NOTICE.looked = now
        if _NOTICE.request.exists():
            _NOTICE.given.set()
    return _NOTICE.given.is_set()


def _hold_or_end(number: int, frame: object) -> None:
    if not _NOTICE.held:
        raise Stopped("stopped by SIGTERM; what was saved is kept: the same command with --resume goes on")
    _note(number, frame)
