"""Work in a process that is killed while it exchanges, moves or removes folders."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval import folders
from tests.helpers.tiny_runs import fork_server


def killed_at(call: int, exchanges: bool, work: Callable[..., object], *arguments: Any) -> bool:
    """Run `work(*arguments)` in a process that is killed right before such a call, counted from 1.

    Returns whether it was killed: False if it has fewer calls. exchanges: whether the file system can exchange two
    folders. work: a function of a module.
    """
    process = fork_server().Process(target=_work, args=(call, exchanges, work, arguments))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _work(call: int, exchanges: bool, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*positional: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*positional, **named)

        return counting

    folders.exchange = counted(folders.exchange if exchanges else lambda *_: False)
    for owner, name in ((Path, "rename"), (shutil, "rmtree"), (Path, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))
    work(*arguments)
