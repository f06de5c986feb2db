"""Collect the rows of all workers in one tensor, with gradients, for losses that compare the rows of a batch.

Each worker computes the loss of its own rows against the rows of all workers. The engine weights this loss by the
worker's share of the global batch and sums the gradients over workers. So the sum equals the gradient that one process
would get from the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """(B, ...) -> (M, ...); the gradient of a row is the sum of its gradients on all workers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: tuple[int, ...], start: int) -> Tensor:
        ctx.own = slice(start, start + len(x))
        padded = x.new_zeros(max(counts), *x.shape[1:])  # all_gather needs equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None, None


@dataclass(frozen=True)
class Gather:
    """The place of this worker's rows among the rows of all workers, in the order of ranks.

    counts: number of rows of each worker. start: index of this worker's first row.
    """

    counts: tuple[int, ...]
    start: int

    @staticmethod
    def of(rows: int, device: torch.device) -> Gather:
        """The Gather for `rows` rows on this worker. Collective, unless there is one worker or no process group.

        The workers exchange their numbers of rows. On several GPUs, each call makes the host wait for these numbers.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return Gather((rows,), 0)
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
        counts[dist.get_rank()] = rows
        dist.all_reduce(counts)
        every: tuple[int, ...] = tuple(counts.tolist())
        return Gather(every, sum(every[: dist.get_rank()]))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, ...) rows of this worker -> (M, ...) rows of all, with gradients. Collective, in backward too.

        Every worker must call backward, with a gradient of 0 if its rows do not count.
        """
        if len(self.counts) == 1:
            return x
        gathered: Tensor = _Gather.apply(x, self.counts, self.start)  # type: ignore[no-untyped-call]
        return gathered


def repeated(key_M: Tensor) -> Tensor:
    """(M,) bool: whether an earlier row has the same key. Such a row is a duplicate and must not count again.

    Duplicates occur in a small last batch: a worker that would have no row takes one that another worker has too
    (`trainer.batches.plan.Plan.share`).
    """
    key_M, order = key_M.sort(stable=True)
    again = torch.cat([torch.zeros_like(key_M[:1], dtype=torch.bool), key_M[1:] == key_M[:-1]])
    return torch.empty_like(again).scatter_(0, order, again)
