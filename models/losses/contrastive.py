"""InfoNCE with the rows of the global batch as negatives: between two views of each row, or of a row with itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nn.gather import Gather, repeated
from models.nn.precision import at_least_float32
from models.options.base import Similarity

# bytes of logits in one slice of rows: small enough for a CPU's cache, large enough to fill a GPU
_SLICE_BYTES_CPU = 1 << 20
_SLICE_BYTES_GPU = 1 << 30
_SLICE_ROWS = 32


def info_nce(one_BD: Tensor, two_BD: Tensor, key_B: Tensor, similarity: Similarity, temperature: float) -> Tensor:
    """Scalar: mean over both views of every row of -log softmax(similarity / temperature)[its other view].

    The negatives are both views of every other row of the batch, over all workers (`models.nn.gather`). Rows with equal
    keys are the same row, and count once. Runs in float32 at least, because dot products can be large.
    """
    with torch.autocast(one_BD.device.type, enabled=False):
        rows_B2D = torch.stack([one_BD, two_BD], dim=1)
        rows_B2D = at_least_float32(rows_B2D)
        if similarity == "cosine":
            rows_B2D = F.normalize(rows_B2D, dim=-1)
        gather = Gather.of(len(key_B), key_B.device)
        column_2MD = gather(rows_B2D).flatten(0, 1)
        again_2M = repeated(gather(key_B)).repeat_interleave(2)
        own_B2 = (gather.start + torch.arange(len(key_B), device=key_B.device))[:, None] * 2
        own_B2 = own_B2 + torch.arange(2, device=key_B.device)
        loss: Tensor = _InfoNCE.apply(  # type: ignore[no-untyped-call]
            rows_B2D.flatten(0, 1), column_2MD, own_B2.flatten(), own_B2.flip(1).flatten(), again_2M, 1 / temperature
        )
    return loss


def uniformity(x_BD: Tensor, key_B: Tensor, temperature: float) -> Tensor:
    """Scalar: mean over rows of -log softmax(cosine / temperature)[itself] against every other row of the batch.

    The positive logit is constant, so this loss only moves rows apart (DiQDiff). Workers and keys as in `info_nce`.
    """
    with torch.autocast(x_BD.device.type, enabled=False):
        row_BD = F.normalize(at_least_float32(x_BD), dim=-1)
        gather = Gather.of(len(key_B), key_B.device)
        own_B = gather.start + torch.arange(len(key_B), device=key_B.device)
        loss: Tensor = _InfoNCE.apply(  # type: ignore[no-untyped-call]
            row_BD, gather(row_BD), own_B, own_B, repeated(gather(key_B)), 1 / temperature
        )
    return loss


class _InfoNCE(torch.autograd.Function):
    """Mean cross-entropy of softmax(scale * query @ column.T) at `other`, the other view of each query's row.

    The softmax leaves out the column `own`, which is the query itself, and the columns of `again`, which are
    duplicates, but never the column `other`. As in `models.losses.softmax`, forward turns the probabilities of a slice
    into gradients while they are in cache, so the (2B, 2M) logits are never in memory as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any, query_QD: Tensor, column_CD: Tensor, own_Q: Tensor, other_Q: Tensor, again_C: Tensor, scale: float
    ) -> Tensor:
        size, budget = len(query_QD), _SLICE_BYTES_GPU if query_QD.is_cuda else _SLICE_BYTES_CPU
        rows = max(_SLICE_ROWS, budget // (len(column_CD) * query_QD.element_size()))
        bias_C = torch.zeros_like(column_CD[:, 0]).masked_fill_(again_C, -torch.inf)
        scaled_QD = query_QD * scale
        query_grad_QD, column_grad_CD = torch.empty_like(query_QD), torch.zeros_like(column_CD)
        loss_Q = torch.empty_like(query_QD[:, 0])
        for start in range(0, size, rows):
            part = slice(start, start + rows)
            logits, other = scaled_QD[part] @ column_CD.T, other_Q[part, None]
            positive = logits.gather(1, other)
            logits.add_(bias_C).scatter_(1, own_Q[part, None], -torch.inf).scatter_(1, other, positive)
            log_p = logits.log_softmax(dim=1)
            loss_Q[part] = -log_p.gather(1, other).squeeze(1)
            p = log_p.exp_()
            p.scatter_add_(1, other, torch.full_like(positive, -1.0))
            torch.mm(p, column_CD, out=query_grad_QD[part])
            column_grad_CD.addmm_(p.T, scaled_QD[part])
        ctx.save_for_backward(query_grad_QD.mul_(scale / size), column_grad_CD.div_(size))
        return loss_Q.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_grad_QD, column_grad_CD = ctx.saved_tensors
        return grad_outputs[0] * query_grad_QD, grad_outputs[0] * column_grad_CD, None, None, None, None
