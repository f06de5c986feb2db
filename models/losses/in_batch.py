"""In-batch debiased cross-entropy of MoRec and IISAN: the items of the global batch are the candidates.

As in their released code, the softmax runs over all items of the batch: targets and histories, as often as they occur.
The logits are user . item - log p(item), where p is the item's share of the training interactions. The items of a
row's own history are not candidates for this row. Here an item that occurs n times is encoded and compared once, with
log n added to its logit, which gives the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.contract import Batch, TrainingInteractions
from models.losses.softmax import sampled_softmax_cross_entropy
from models.nn.gather import Gather, repeated


@dataclass(frozen=True)
class BatchCandidates:
    """The C distinct items of the global batch. row: (C,) item rows, ascending; they include padding if the batch has
    any. count: (C,) number of times that each item occurs; 0 for padding, which is never a candidate.
    """

    row: Tensor
    count: Tensor

    def place(self, items: Tensor) -> Tensor:
        """The index among the candidates of each item row in `items` (any shape; all must be in the batch)."""
        return torch.searchsorted(self.row, items)


@dataclass(frozen=True)
class _Corrections:
    """offset_C: (C,) is added to the logits of each candidate; own_B: (B,) to that of the target of each row instead.
    hidden_BL: (B, L) candidates that are none for their row; the target always is one."""

    offset_C: Tensor
    own_B: Tensor
    hidden_BL: Tensor

    def apply(self, logits: Tensor, rows: slice, target_B: Tensor) -> Tensor:
        target_B1 = target_B[rows, None]
        own = logits.gather(1, target_B1) + self.own_B[rows, None].to(logits.dtype)
        logits.add_(self.offset_C)
        return logits.scatter_(1, self.hidden_BL[rows], -torch.inf).scatter_(1, target_B1, own)


class InBatchSoftmax(nn.Module):
    """Finds the candidates of a batch, over all workers, and computes the loss of its rows against them."""

    log_share: Tensor

    def __init__(self, interactions: TrainingInteractions, n_items: int) -> None:
        super().__init__()
        counts = torch.bincount(interactions.items, minlength=n_items)
        # an item without a training interaction would have share 0, so count it as one interaction
        share = counts.clamp(min=1) / counts.sum().clamp(min=1)
        self.register_buffer("log_share", share.log(), persistent=False)

    def candidates(self, batch: Batch) -> BatchCandidates:
        """The candidates, from the rows of all workers; equal on every worker. Collective; the host waits for C."""
        own = torch.cat([batch.key[:, None], batch.target[:, None], batch.history], dim=1)
        rows = Gather.of(len(batch), own.device)(own)
        key_M, items = rows[:, 0], rows[:, 1:]
        counted = (items != 0) & ~repeated(key_M)[:, None]
        row, place = torch.unique(items, return_inverse=True)
        count = self.log_share.new_zeros(len(row)).index_add_(0, place.flatten(), counted.flatten().to(self.log_share))
        return BatchCandidates(row, count)

    def forward(self, user_BD: Tensor, item_CD: Tensor, candidates: BatchCandidates, batch: Batch) -> Tensor:
        """Scalar: mean loss over rows, from (B, D) user and (C, D) candidate vectors. Memory: a slice of (B, C)."""
        target_B = candidates.place(batch.target)
        log_share_C = self.log_share[candidates.row]
        corrections = _Corrections(
            offset_C=candidates.count.log() - log_share_C,
            own_B=-log_share_C[target_B],  # the target counts once, not n times
            hidden_BL=candidates.place(batch.history),
        )
        return sampled_softmax_cross_entropy(user_BD, item_CD, target_B, corrections)
