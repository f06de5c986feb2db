"""Keeping freed memory for the next tensor of the same size."""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGE = 2**31 - 1
_PAD = 64 << 20


def keep_freed_memory() -> None:
    """Tell glibc not to give freed tensors back to the system (nothing happens with another C library).

    A training step on a CPU frees and allocates the same large tensors again and again; by default each goes through
    mmap and munmap, and the kernel zeroes its pages anew: almost half of a step's time was page faults.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGE), (_M_TOP_PAD, _PAD)):
        mallopt(parameter, value)
