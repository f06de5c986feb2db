"""What a measurement is read with: CPU and wall time, hardware, versions."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Clock:
    """CPU seconds of this process and its children, and wall seconds."""

    cpu: float
    wall: float

    @staticmethod
    def now() -> Clock:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Clock(time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter())

    def elapsed(self) -> dict[str, float]:
        now = Clock.now()
        return {"cpu_s": round(now.cpu - self.cpu, 4), "wall_s": round(now.wall - self.wall, 4)}


def mean_times(times: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each key over epochs; empty when there is none."""
    return {key: round(sum(t[key] for t in times) / len(times), 4) for key in times[0]} if times else {}


def environment() -> dict[str, Any]:
    """Hardware and versions that a figure must be read with."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("recbole", "torch", "torch-geometric", "numpy", "pandas", "scipy", "ray")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _installed(name))},
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
