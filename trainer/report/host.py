"""What made the report: versions and hardware, without names of hosts, users or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

_PACKAGES = ("torch", "deepspeed", "ray", "numpy", "faiss-cpu", "faiss-gpu", "plotly")


def host() -> dict[str, str]:
    """Name -> words: processor, memory, GPUs, system, Python and packages of this machine."""
    found = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": _gpus(),
        "system": f"{platform.system()} {platform.release().split('-')[0]} ({platform.machine()})",
        "Python": platform.python_version(),
    }
    return found | {name: version for name in _PACKAGES if (version := _version(name))}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> str:
    import torch  # takes seconds: only where hardware is asked for

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
