"""The current process: its rank among the workers, and its memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGE = 2**31 - 1
_PAD = 64 << 20
#: how much a process may grow beyond what it held after one step
_GROWTH = 1.25


def world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) if there is no process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The sums of each value over all ranks. Collective; every rank gets them."""
    size = world()[1]
    if size == 1:
        return list(values)
    shares: list[list[float]] = [[]] * size
    dist.all_gather_object(shares, list(values))
    return [sum(each) for each in zip(*shares, strict=True)]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused. torch has no class of its own for it on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system. Does nothing with another C library.

    A training step on a CPU frees and allocates the same large tensors again and again. By default each allocation
    uses mmap, and the kernel must zero its pages again: almost half of a step's time was page faults.

    The heap then only stays small if no small block that lives longer comes to lie between the large ones: the gaps
    that these leave are too small for the tensors of a later step. Nearly all such blocks belong to oneDNN. It keeps
    the code of its last 1024 operations, one for each shape, and packed batches have other shapes in every step. So
    it is told, before its first operation, to keep none. `GrowthLimit` bounds what is left.
    """
    libc = _glibc()
    if libc is not None:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGE), (_M_TOP_PAD, _PAD)):
            libc.mallopt(parameter, value)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")


class GrowthLimit:
    """Returns freed memory to the system when the process has grown by a quarter since the first step.

    This bounds what `keep_freed_memory` keeps, whatever the reason for the growth. After the free part was returned,
    the next step takes back only what it uses, and this is measured anew, so the limit follows a real need for more.
    """

    def __init__(self, device: torch.device) -> None:
        self._libc = _glibc() if device.type == "cpu" else None
        self._limit_mib: float | None = None

    def step_done(self) -> None:
        """Compare the memory of this process with the limit. To be called after each step; takes microseconds."""
        memory_mib = private_memory_mib() if self._libc is not None else None
        if self._libc is None or memory_mib is None:
            return
        if self._limit_mib is None:
            self._limit_mib = _GROWTH * memory_mib
        elif memory_mib > self._limit_mib:
            self._libc.malloc_trim(0)
            self._limit_mib = None


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def usage() -> dict[str, float]:
    """What may not grow in a long run: `memory_mib` (private_memory_mib) and `open_files` (sockets and pipes included).

    Empty where the system has no /proc.
    """
    memory_mib = private_memory_mib()
    if memory_mib is None:
        return {}
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # this listing is open, too
    return {"memory_mib": round(memory_mib, 1), "open_files": descriptors}


def private_memory_mib() -> float | None:
    """Resident memory of this process, without memory-mapped files, whose pages the system can drop.

    None where the system has no /proc.
    """
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_bytes().split())
    except OSError:
        return None
    return (resident - shared) * resource.getpagesize() / 2**20


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process: on the GPU if it uses one, else resident memory, including memory-mapped files."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
