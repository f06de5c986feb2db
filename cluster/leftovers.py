"""Folders of Rays that we started and that have ended: a killed head leaves its folder, and Ray leaves all of its own.

Another user's folders, those of another program's Ray, and those of a Ray that still runs are never among them.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil

from cluster import head, session

_HEAD = re.compile(re.escape(head.PREFIX) + r"[a-z0-9_]{8}")
#: seconds in which a head that is about to start has a folder, but no process yet
_STARTING_S = 60.0


def of_ended_rays() -> list[Path]:
    """The folders, oldest name first."""
    running = _commands()
    return [
        folder
        for folder in (*_heads(Path(head.PLACE)), *_sessions(ray_folder()))
        if not any(folder.name in command for command in running) and not head.processes_of(folder.name)
    ]


def _heads(place: Path) -> list[Path]:
    """Folders of heads (`cluster.head`) of this user."""
    found = []
    for folder in sorted(place.glob(f"{head.PREFIX}*")):
        with suppress(OSError):  # it went meanwhile
            log = (folder / head.LOG).stat()
            ours = folder.stat().st_uid == os.geteuid() and _HEAD.fullmatch(folder.name) and not folder.is_symlink()
            if ours and time.time() - log.st_mtime > _STARTING_S:
                found.append(folder)
    return found


def _sessions(place: Path) -> list[Path]:
    """Folders of the Ray sessions (`cluster.session.connected`) of this user; `session_latest` is a link to one."""
    folders = [mark.parent for mark in sorted(place.glob(f"session_*/{session.MARK}"))]
    return [folder for folder in folders if not folder.is_symlink() and folder.stat().st_uid == os.geteuid()]


def ray_folder() -> Path:
    """Where Ray (2.60) keeps sessions whose place nobody chose."""
    return session.temporary_folder() / "ray"


def _commands() -> list[str]:
    """The command lines of all processes; those of a Ray name its session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found.append(" ".join(process.cmdline()))
    return found
