"""How many CPU cores this process may use: containers and batch systems often grant fewer than the machine has."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """At least 1. Where the system cannot tell (macOS), all cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
