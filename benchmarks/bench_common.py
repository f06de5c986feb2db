"""What every part of the benchmark shares: its settings, clocks, memory, and packages that may be missing."""

from __future__ import annotations

import importlib.util
import resource
import statistics
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference_clock import Clock

Result = dict[str, Any]

#: a median of fewer repeats says nothing
MIN_REPEATS = 3


@dataclass(frozen=True)
class Settings:
    """data: a prepared dataset. recipe: name or path, with `settings` on top (section.key=value).

    seconds: about how long one figure may take. epochs: whole epochs to train per repeat (0: as `seconds` allow).
    """

    data: str
    recipe: str
    settings: tuple[str, ...]
    device: str
    threads: int
    seconds: float
    repeats: int
    epochs: int


class Missing(Exception):
    """A part that cannot be measured because a package is not installed."""


def installed(name: str) -> bool:
    """Whether package `name` can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a stand-in of ours
        return False


def need(name: str) -> None:
    """Raise Missing unless package `name` is installed."""
    if not installed(name):
        raise Missing(f"{name} not installed")


def stand_in_for_webdataset() -> None:
    """Let `trainer.batches.loader` be imported where webdataset is missing: it imports the reader of shards with it.

    Nothing here calls the reader or writer of shards without `need("webdataset")` before.
    """
    if installed("webdataset"):
        return
    names = {"webdataset.tariterators": ("group_by_keys", "tar_file_expander"), "webdataset.writer": ("TarWriter",)}
    sys.modules["webdataset"] = types.ModuleType("webdataset")
    for module, attributes in names.items():
        sys.modules[module] = types.ModuleType(module)
        for attribute in attributes:
            setattr(sys.modules[module], attribute, None)


def choose_device(wanted: str) -> torch.device:
    """The device to measure on."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", 0) if wanted == "cuda" else torch.device("cpu")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """CPU and wall seconds of one call, the work it left on the device included: cpu_s, wall_s."""
    synchronise(device)
    before = Clock.now()
    run()
    synchronise(device)
    after = Clock.now()
    return {"cpu_s": after.cpu - before.cpu, "wall_s": after.wall - before.wall}


def repeated(run: Callable[[], Any], settings: Settings, device: torch.device) -> Result:
    """Median CPU and wall seconds of a call after one that does not count, and the fastest and slowest wall seconds."""
    once = timed(run, device)["wall_s"]
    repeats = max(MIN_REPEATS, min(settings.repeats, int(settings.seconds / max(once, 1e-6))))
    return summary([timed(run, device) for _ in range(repeats)])


def summary(times: list[dict[str, float]]) -> Result:
    """Medians of cpu_s and wall_s, the range of wall_s, and how many there were."""
    wall = [each["wall_s"] for each in times]
    return {
        "cpu_s": statistics.median(each["cpu_s"] for each in times), "wall_s": statistics.median(wall),
        "wall_range_s": [min(wall), max(wall)], "repeats": len(times),
    }  # fmt: skip


def rate(amount: float, seconds: float) -> float:
    """Amount per second, for durations that may be too short to see."""
    return amount / max(seconds, 1e-9)


def memory_mb(device: torch.device) -> dict[str, float]:
    """Peak of this process so far in MiB: rss_mb, and cuda_mb on a GPU."""
    peak = {"rss_mb": _peak_rss_kb() / 1024}
    if device.type == "cuda":
        peak["cuda_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peak


def _peak_rss_kb() -> float:
    # getrusage alone would count the parent: its peak is carried over when a process is started
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return float(found[0]) if found else float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
