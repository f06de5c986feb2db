"""Exact ranking where each worker holds the vectors of its share of the items (`engine.item_rows=sharded`).

Vectors of users travel, those of items do not: every worker compares the users of all workers with its own items, and
what it counts is summed. Shapes: B users of this worker, M users of all workers, S rows of this worker's share, K best.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.contract import Batch, SequenceModel
from models.errors import UserError
from models.nn.gather import Gather
from models.row_share import RowShare
from retrieval.exact import Histories, Ranks, check_finite, exact_topk, for_similarity
from trainer.evaluation.top_lists import TopLists
from trainer.process import sum_over_ranks

_SCORE_BYTES = 4
#: bytes of scores in memory at a time; workers tell each other the scores of the targets once for each time
_CPU_BYTES, _GPU_BYTES = 16 << 20, 512 << 20


class ShareRanker:
    """A `Ranker`. Every worker must rank the same number of batches, each of at least one user, with the same k."""

    def __init__(self, model: SequenceModel, items_SD: Tensor) -> None:
        """items_SD: vectors of this worker's share, row 0 padding. Collective. Raises UserError on every worker if one
        of any worker is not finite."""
        assert model.share is not None
        self._model, self._items, self._share = model, items_SD, model.share
        (bad,) = sum_over_ranks([float((~torch.isfinite(items_SD[1:]).all(dim=1)).sum())])
        if bad:
            raise UserError(
                f"{int(bad):,} item vectors hold NaN or an infinite value: nothing can be ranked; the model has "
                "diverged: train it again with a lower learning rate"
            )

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`. Collective."""
        vector_BD = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        gather = Gather.of(len(batch), vector_BD.device)
        vector_MD, target_M = gather(vector_BD), gather(batch.target)
        check_finite(vector_MD, "user vector")
        known = _known_here(histories, gather, self._share, vector_MD.device)
        own = slice(gather.start, gather.start + len(batch))
        everyone = self._ranks(vector_MD, target_M, known)
        ranks = Ranks(*(rank_M[own] for rank_M in everyone))
        if not k:
            return ranks, None
        return ranks, TopLists(*(self._topk(vector_MD, k, exclude)[own] for exclude in (None, known)))

    def _ranks(self, vector_MD: Tensor, target_M: Tensor, known: Histories) -> Ranks:
        """Ranks of the users of all workers, as `retrieval.exact.exact_ranks`."""
        real_SD, share = self._items[1:], self._share
        rank_M, masked_M = torch.zeros_like(target_M), torch.zeros_like(target_M)
        budget = _GPU_BYTES if vector_MD.is_cuda else _CPU_BYTES
        step = max(1, budget // (_SCORE_BYTES * share.of_worker(0).count))  # the same on every worker
        for start in range(0, len(vector_MD), step):
            part = slice(start, start + step)
            scores, target_b = vector_MD[part] @ real_SD.T, target_M[part]
            own_b = self._of_targets(scores, target_b)
            user, local = known.pairs(start, start + len(target_b), share.count)
            # as in `exact_ranks`: what is not lower than the target counts against it
            rival = ~(scores[user, local - 1] < own_b[user]) & (share.rows(local) != target_b[user])
            masked_M[part] = torch.zeros_like(target_b).index_add_(0, user, rival.long())
            lower_b = scores.lt_(own_b[:, None]).sum(1, dtype=torch.float64).long()
            rank_M[part] = scores.shape[1] - lower_b
        dist.all_reduce(rank_M)
        dist.all_reduce(masked_M)
        return Ranks(rank_M, rank_M - masked_M)

    def _of_targets(self, scores: Tensor, target_b: Tensor) -> Tensor:
        """(b,) the score of each user's target, from the worker that holds it. scores: (b, S - 1)."""
        own_b = scores.new_full((len(target_b),), -torch.inf)
        here = (self._share.owner(target_b) == self._share.rank).nonzero().squeeze(1)
        own_b[here] = scores[here, self._share.local(target_b[here]) - 1]
        dist.all_reduce(own_b, dist.ReduceOp.MAX)
        return own_b

    def _topk(self, vector_MD: Tensor, k: int, exclude: Histories | None) -> Tensor:
        """(M, k) item rows as `exact_topk`: of equal scores, the lower row first; 0 where there are no more."""
        score_MK, local_MK = exact_topk(vector_MD, self._items, k, exclude)
        found = []
        for mine in (score_MK, self._share.rows(local_MK)):
            parts = [torch.empty_like(mine) for _ in range(self._share.size)]
            dist.all_gather(parts, mine.contiguous())
            found.append(torch.cat(parts, dim=1))
        scores, rows = found
        rows, order = rows.sort(dim=1)
        order_of_scores = scores.gather(1, order).sort(dim=1, descending=True, stable=True)[1]
        return rows.gather(1, order_of_scores)[:, :k]

    def finish(self) -> None:
        """Nothing to do: all workers ranked together."""

    def describe(self) -> dict[str, Any]:
        """How the catalogue was ranked."""
        why = "each worker compares all users with its share of the items"
        return {"kind": "exact", "approximate": False, "why": why}


def _known_here(histories: Histories, gather: Gather, share: RowShare, device: torch.device) -> Histories:
    """The known items of the users of all workers that are in this share, as places in it. Collective."""
    users = gather.counts[share.rank]
    user_P, item_P = (x.to(device) for x in histories.pairs(0, users, share.items))
    pairs = Gather.of(len(user_P), device)
    user_P, item_P = pairs(user_P + gather.start), pairs(item_P)
    mine = share.owner(item_P) == share.rank
    counts_M = torch.bincount(user_P[mine], minlength=sum(gather.counts))
    offsets = torch.cat([counts_M.new_zeros(1), counts_M.cumsum(0)])
    return Histories(offsets, share.local(item_P[mine]))
