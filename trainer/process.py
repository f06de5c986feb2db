"""The current process: its rank among the workers, and its memory."""

from __future__ import annotations

import ctypes
import resource
import sys

import torch
import torch.distributed as dist

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGE = 2**31 - 1
_PAD = 64 << 20


def world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) if there is no process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system. Does nothing with another C library.

    A training step on a CPU frees and allocates the same large tensors again and again. By default each allocation
    uses mmap, and the kernel must zero its pages again: almost half of a step's time was page faults.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGE), (_M_TOP_PAD, _PAD)):
        mallopt(parameter, value)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process: on the GPU if it uses one, else resident memory, including memory-mapped files."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
