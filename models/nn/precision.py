"""The precision that delicate arithmetic runs in: norms, softmax, graphs and diffusion states, under autocast too."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float64 (for checking gradients); shape and device stay."""
    return x if x.dtype == torch.float64 else x.float()
