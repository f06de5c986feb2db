"""Softmax losses over the whole catalogue, or a sample of it, without a (B, I) matrix of gradients in memory."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nn.precision import at_least_float32

# Logits of one slice of rows: small enough for a CPU's cache, large enough to fill a GPU.
_SLICE_BYTES_CPU = 1 << 20
_SLICE_BYTES_GPU = 1 << 30
# at least this many rows, even for a large catalogue: fewer rows would make the matrix products inefficient
_SLICE_ROWS = 32


class Corrections(Protocol):
    """What a softmax over a sample of the catalogue changes in its logits. It gets no gradient."""

    def apply(self, logits: Tensor, rows: slice, target_B: Tensor) -> Tensor:
        """`logits` (b, C) of a slice of rows, corrected in place. target_B: (B,) index of each row's target among C."""


class _FullSoftmaxCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(scale * user @ item.T + corrections); gradients are computed slice by slice.

    Forward turns the probabilities of a slice into gradients while they are still in cache. So neither the logits nor
    their gradient are ever in memory as a whole. This saves memory traffic on a CPU, and memory on a GPU.
    """

    @staticmethod
    def forward(
        ctx: Any, user_BD: Tensor, item_ID: Tensor, target_B: Tensor, scale: float, corrections: Corrections | None
    ) -> Tensor:
        budget = _SLICE_BYTES_GPU if user_BD.is_cuda else _SLICE_BYTES_CPU
        size, rows = user_BD.shape[0], max(_SLICE_ROWS, budget // (item_ID.shape[0] * 4))
        scaled_BD = user_BD * scale
        share_BD = scaled_BD / size  # the contribution of each row to the gradient of the items
        user_grad_BD = torch.empty_like(user_BD)
        loss_B = at_least_float32(user_BD.new_empty(size))  # for inputs of any type (decision D35)
        # slices are summed in float32, also where their products are in bfloat16
        item_grad_ID = torch.zeros_like(item_ID, dtype=loss_B.dtype)
        for start in range(0, size, rows):
            part = slice(start, start + rows)
            logits = (scaled_BD[part] @ item_ID.T).to(loss_B.dtype)
            if corrections is not None:
                logits = corrections.apply(logits, part, target_B)
            highest, score = logits.amax(dim=1), logits.gather(1, target_B[part, None]).squeeze(1)
            p = logits.softmax(dim=1)
            # log-sum-exp from the largest probability, which is at least 1 / I: avoids a second pass of exponentials
            loss_B[part] = highest - p.amax(dim=1).log() - score
            # The gradient of the logits: p, less 1 for the target. Here each row has a place of its own; after the
            # products, rows with the same target would be added in an order that a GPU does not fix.
            p.scatter_add_(1, target_B[part, None], torch.full_like(score, -1.0)[:, None])
            p = p.to(user_BD.dtype)
            torch.mm(p, item_ID, out=user_grad_BD[part])
            if item_grad_ID.dtype == p.dtype:
                item_grad_ID.addmm_(p.T, share_BD[part])
            else:
                item_grad_ID += p.T @ share_BD[part]
        user_grad_BD.mul_(scale / size)
        ctx.save_for_backward(user_grad_BD, item_grad_ID.to(item_ID.dtype))
        return loss_B.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        user_grad_BD, item_grad_ID = ctx.saved_tensors
        return grad_outputs[0] * user_grad_BD, grad_outputs[0] * item_grad_ID, None, None, None


def full_softmax_cross_entropy(user_BD: Tensor, item_ID: Tensor, target_B: Tensor, scale: float = 1.0) -> Tensor:
    """Scalar mean of -log softmax(scale * user . item)[target] over items 1..I-1, without padding row 0.

    RecBole's softmax includes the padding column. Here it is left out, which removes a class that is never a target.
    user_BD: (B, D). item_ID: (I, D). target_B: (B,) item rows.
    """
    return _cross_entropy(user_BD, item_ID[1:], target_B - 1, scale, None)


def sampled_softmax_cross_entropy(
    user_BD: Tensor, item_CD: Tensor, target_B: Tensor, corrections: Corrections, scale: float = 1.0
) -> Tensor:
    """Scalar mean of -log softmax(scale * user . item, corrected)[target] over C candidates, none of them padding.

    target_B: (B,) indices of candidates, not item rows.
    """
    return _cross_entropy(user_BD, item_CD, target_B, scale, corrections)


def _cross_entropy(
    user_BD: Tensor, item_ID: Tensor, target_B: Tensor, scale: float, corrections: Corrections | None
) -> Tensor:
    if torch.is_autocast_enabled(user_BD.device.type):
        dtype = torch.get_autocast_dtype(user_BD.device.type)
        user_BD, item_ID = user_BD.to(dtype), item_ID.to(dtype)
    with torch.autocast(user_BD.device.type, enabled=False):
        loss: Tensor = _FullSoftmaxCrossEntropy.apply(  # type: ignore[no-untyped-call]
            user_BD, item_ID, target_B, scale, corrections
        )
    return loss


def cosine_full_softmax_cross_entropy(user_BD: Tensor, item_ID: Tensor, target_B: Tensor, temperature: float) -> Tensor:
    """`full_softmax_cross_entropy` of the cosine similarities divided by `temperature` (TedRec)."""
    user_BD, item_ID = F.normalize(user_BD, dim=-1), F.normalize(item_ID, dim=-1)
    return full_softmax_cross_entropy(user_BD, item_ID, target_B, 1.0 / temperature)
