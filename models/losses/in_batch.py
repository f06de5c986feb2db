"""In-batch debiased cross-entropy of MoRec and IISAN: the items of the global batch are the candidates.

From the facts of their released code: over all items of the batch (targets and histories, as often as they occur),
logits are user . item - log p(item), p the item's share of the training interactions; the items of a row's own
history are no candidates for it. An item that occurs n times is encoded and compared once, with log n on its logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.contract import Batch, TrainingInteractions
from models.losses.softmax import Corrections, sampled_softmax_cross_entropy
from models.nn.gather import Gather, repeated


@dataclass(frozen=True)
class BatchCandidates:
    """The C distinct items of the global batch. row: (C,) item rows, ascending; padding is one of them where the batch
    has any. count: (C,) how often each occurs; 0 for padding, which nothing is compared with.
    """

    row: Tensor
    count: Tensor

    def place(self, items: Tensor) -> Tensor:
        """Index among the candidates of item rows of the batch (any shape)."""
        return torch.searchsorted(self.row, items)


class InBatchSoftmax(nn.Module):
    """Finds the candidates of a batch, over all workers, and compares its rows with them."""

    log_share: Tensor

    def __init__(self, interactions: TrainingInteractions, n_items: int) -> None:
        super().__init__()
        counts = torch.bincount(interactions.items, minlength=n_items)
        # an item that training never saw has share 0: as if it had been seen once
        share = counts.clamp(min=1) / counts.sum().clamp(min=1)
        self.register_buffer("log_share", share.log(), persistent=False)

    def candidates(self, batch: Batch) -> BatchCandidates:
        """The same on every worker, from the rows of all. Collective; the host waits for their number."""
        own = torch.cat([batch.key[:, None], batch.target[:, None], batch.history], dim=1)
        rows = Gather.of(len(batch), own.device)(own)
        key_M, items = rows[:, 0], rows[:, 1:]
        counted = (items != 0) & ~repeated(key_M)[:, None]
        row, place = torch.unique(items, return_inverse=True)
        count = self.log_share.new_zeros(len(row)).index_add_(0, place.flatten(), counted.flatten().to(self.log_share))
        return BatchCandidates(row, count)

    def forward(self, user_BD: Tensor, item_CD: Tensor, candidates: BatchCandidates, batch: Batch) -> Tensor:
        """Scalar mean over rows, from user vectors and the vectors of the candidates. Memory: a slice of (B, C)."""
        target_B = candidates.place(batch.target)
        log_share_C = self.log_share[candidates.row]
        corrections = Corrections(
            offset_I=candidates.count.log() - log_share_C,
            own_B=-log_share_C[target_B],  # as a target an item stands for its row alone
            hidden_BL=candidates.place(batch.history),
        )
        return sampled_softmax_cross_entropy(user_BD, item_CD, target_B, corrections)
