"""The sum of dense gradients over all workers, in few messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

#: gradients of up to so many bytes travel together: each message takes time, whatever its size
_SMALL = 1 << 20


def sum_gradients(gradients: Sequence[Tensor]) -> None:
    """Make each gradient its sum over all workers, in place. Collective, with the same shapes on every worker."""
    large = [gradient for gradient in gradients if gradient.nbytes > _SMALL]
    small = [gradient for gradient in gradients if gradient.nbytes <= _SMALL]
    handles = [dist.all_reduce(gradient, async_op=True) for gradient in large]
    if small:
        together = torch.cat([gradient.reshape(-1) for gradient in small])
        handles.append(dist.all_reduce(together, async_op=True))
    for handle in handles:
        handle.wait()
    if small:
        sums = torch.split(together, [gradient.numel() for gradient in small])
        torch._foreach_copy_(small, [one.view_as(gradient) for one, gradient in zip(sums, small, strict=True)])
