"""The precision of norms, softmax, graphs and diffusion states, also under autocast: bfloat16 would spoil them."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64 (as in gradient checks); same shape and device."""
    return x if x.dtype == torch.float64 else x.float()
