"""Content in host memory that a GPU reads by itself, over its bus: for content that its own memory does not hold.

The host takes no part in a read, so it neither waits nor copies, and a CUDA graph can read other rows each time.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _Registered:
    """A copy of `array` in page-locked host memory, as an array at an address that the device understands, too."""

    def __init__(self, array: NDArray[Any]) -> None:
        copy = np.array(array, order="C")
        cuda, address = torch.cuda.cudart(), copy.ctypes.data  # type: ignore[no-untyped-call]
        torch.cuda.check_error(int(cuda.cudaHostRegister(address, copy.nbytes, 0)))
        # the last reference to the copy: it is freed after it has been released
        weakref.finalize(self, lambda kept: cuda.cudaHostUnregister(kept.ctypes.data), copy)
        self.__cuda_array_interface__ = {
            "shape": copy.shape, "typestr": copy.dtype.str, "data": (address, False), "version": 3,
        }  # fmt: skip


def pinned(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on `device` whose memory is on the host; equal to `array`. Raises RuntimeError: CUDA refuses it."""
    return torch.as_tensor(_Registered(array), device=device)
