"""The work of tests of cluster.ray_tasks: imported by Ray's processes."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path


def work(unit: tuple[str, int, Path]) -> str:
    """The name of the unit in capitals. Its process kills itself the first so many times; with -1 it raises."""
    name, times, folder = unit
    if times < 0:
        raise ValueError(f"{name!r} is not work")
    if len(list(folder.glob(f"{name}-*"))) < times:
        (folder / f"{name}-{uuid.uuid4().hex}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name.upper()
