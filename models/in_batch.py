"""In-batch debiased cross-entropy of MoRec and IISAN: the items of the global batch are the candidates.

From the facts of their released code: over all items of the batch (targets and histories, as often as they occur),
logits are user . item - log p(item), p the item's share of the training interactions; the items of a row's own
history are no candidates for it. An item that occurs n times is encoded and compared once, with log n on its logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.contract import Batch, TrainingInteractions
from models.loss import Corrections, sampled_softmax_cross_entropy


@dataclass(frozen=True)
class Candidates:
    """The C distinct items of the global batch. row: (C,) item rows, ascending. count: (C,) how often each occurs."""

    row: Tensor
    count: Tensor

    def place(self, items: Tensor) -> Tensor:
        """Index among the candidates of item rows that are candidates (any shape); 0 for padding."""
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

    def candidates(self, batch: Batch) -> Candidates:
        """Collective: the same on every worker, from the rows of all. Synchronises the host, for their number."""
        items = torch.cat([batch.target[:, None], batch.history], dim=1)
        real = items != 0
        count_I = torch.zeros(len(self.log_share), dtype=torch.int32, device=items.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            real = real & ~_repeats_first_row(batch)[:, None]
            count_I.index_add_(0, items.flatten(), real.flatten().int())
            dist.all_reduce(count_I)
        else:
            count_I.index_add_(0, items.flatten(), real.flatten().int())
        row = count_I.nonzero().squeeze(1)
        return Candidates(row, count_I[row])

    def forward(self, user_BD: Tensor, item_CD: Tensor, candidates: Candidates, batch: Batch) -> Tensor:
        """Scalar mean over rows, from user vectors and the vectors of the candidates. Memory: a slice of (B, C)."""
        target_B = candidates.place(batch.target)
        # padding hides the target, which is never hidden
        hidden_BL = torch.where(batch.history != 0, candidates.place(batch.history), target_B[:, None])
        log_share_C = self.log_share[candidates.row]
        offset_C = candidates.count.to(log_share_C.dtype).log() - log_share_C
        corrections = Corrections(offset_C, -log_share_C[target_B], hidden_BL)
        return sampled_softmax_cross_entropy(user_BD, item_CD, target_B, corrections)


def _repeats_first_row(batch: Batch) -> Tensor:
    """(B,) rows of this worker that stand in for missing ones (trainer/plan.py): the first row of worker 0 again.

    Keys are distinct per training row, so the stand-in is told by its key, and its items are counted once.
    """
    first = batch.key[:1].clone()
    dist.broadcast(first, 0)
    return (batch.key == first) & (dist.get_rank() != 0)
