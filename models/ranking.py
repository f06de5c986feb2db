"""How a backbone learns to rank: the vectors of items as candidates, and the histories that it trains on.

The defaults are the published form of every backbone: one item table serves for histories and for candidates, every
item is a negative in every step, and histories are not shortened. "What was learned from running it" in
docs/fidelity.md says why there are other forms, and docs/scale.md what a large catalogue needs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, TrainingInteractions
from models.losses.sampled import Sampler
from models.nn.cache import Caching
from models.nn.content import ScaledContent
from models.nn.noise import KeyedNoise, Stream
from models.nn.row_exchange import rows_of
from models.options.ranking import RankingOptions
from models.row_share import RowShare

#: number of items whose content is projected at a time: limits the memory for a large catalogue
_BLOCK = 1 << 14
#: initial scale of the projection of unit content, so that it is not larger than a trained ID vector
_CONTENT_STD = 0.05


class Candidates(Caching, nn.Module):
    """Makes the candidates from the backbone's ID table, and selects the items that the training softmax runs over."""

    own: nn.Parameter | None
    seen: Tensor | None
    place: Tensor | None

    def __init__(self, options: RankingOptions, context: ModelContext, hidden: int) -> None:
        super().__init__()
        #: whether the gradients of tables are sparse where `rows` reads them
        self.sparse = False
        self.options, self.noise = options, KeyedNoise(context.seed)
        self.share = context.share
        seen_I = seen_items(context.interactions, context.table.n_items)
        # plain parameters and not modules, so that a backbone's init_weights does not change them
        self.own = self._table_of_its_own(seen_I, hidden) if options.untied else None
        self.project, self.content = None, None
        if options.content != "none":
            self.content = ScaledContent(context.table, options.content, options.scale)
            self.project = nn.Parameter(_CONTENT_STD * torch.randn(hidden, self.content.width[0]))
        left_out = options.absent == "left_out" and not bool(seen_I[1:].all())
        self.sampler: Sampler | None = None
        if options.negatives:
            allowed_I = seen_I.clone() if options.absent == "left_out" else torch.ones_like(seen_I)
            allowed_I[0] = False
            self.sampler = Sampler(context.interactions, allowed_I, options.negatives, options.sampling, context.seed)
        self.register_buffer("seen", seen_I.nonzero().squeeze(1) if left_out else None, persistent=False)
        self.register_buffer("place", seen_I.cumsum(0) if left_out else None, persistent=False)

    def _table_of_its_own(self, seen_I: Tensor, hidden: int) -> nn.Parameter:
        if self.share is None:
            own = 0.02 * torch.randn(len(seen_I), hidden)
        else:
            own, seen_I = 0.02 * self.share.normal(hidden, 1.0), self.share.of(seen_I)
        own[0] = 0
        if self.options.absent == "left_out":  # never trained: zero, so that only content ranks them
            own[~seen_I] = 0
        return nn.Parameter(own)

    def forward(self, shared_ID: Tensor) -> Tensor:
        """(I, D) ID table of the histories -> (I, D) candidates; row 0 is padding. With `share`, of its rows alone."""
        item_ID = shared_ID if self.own is None else self.own
        if self.training and self.options.id_dropout:
            kept = torch.rand(len(item_ID), 1, device=item_ID.device) >= self.options.id_dropout
            item_ID = item_ID * kept
        if self.project is not None:
            item_ID = item_ID + self.cached(partial(self._content, len(item_ID)))
        return item_ID

    def _content(self, items: int) -> Tensor:
        projected: Tensor = _Projected.apply(self.project, self.content, items, self.share)  # type: ignore[no-untyped-call]
        return projected

    def rows(self, shared_ID: Tensor, item_C: Tensor, key: Tensor) -> Tensor:
        """(C, D): the rows `item_C` of `forward`, at a cost that does not depend on I.

        key: (0-dim) of the step. An item loses its ID vector in all of its occurrences, or in none.
        """
        table = shared_ID if self.own is None else self.own
        if self.share is None:
            items, item_CD = len(table), F.embedding(item_C, table, sparse=self.sparse)
        else:
            items, item_CD = self.share.items, rows_of(table, item_C, self.share)
        if self.training and self.options.id_dropout:
            drawn_C = self.noise.uniform(item_C + key * items, (1,), Stream.ID_DROPOUT)
            item_CD = item_CD * (drawn_C >= self.options.id_dropout)
        if self.project is not None and self.content is not None:
            item_CD = item_CD + F.normalize(self.content(item_C).to(self.project.dtype), dim=1) @ self.project.T
        return item_CD

    def trained(self, item_ID: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `item_ID` that the training softmax runs over, padding first, and the targets' places in them.

        No target is left out: the targets of training rows are training interactions.
        """
        if self.seen is None or self.place is None:
            return item_ID, target_B
        return torch.cat([item_ID[:1], item_ID.index_select(0, self.seen)]), self.place[target_B]


class _Projected(torch.autograd.Function):
    """(I, D) unit content of all items, or those of a share, times the projection. Gathers the content in blocks, in
    forward and again in backward, so that it is never in memory as a whole."""

    @staticmethod
    def forward(ctx: Any, project_DH: Tensor, content: ScaledContent, items: int, share: RowShare | None) -> Tensor:
        ctx.content, ctx.items, ctx.share = content, items, share
        ctx.like = project_DH
        parts = [content_DH @ project_DH.T for content_DH in _unit_blocks(content, items, share, project_DH)]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, start = torch.zeros_like(ctx.like), 0
        for content_IH in _unit_blocks(ctx.content, ctx.items, ctx.share, ctx.like):
            block_ID = grad_outputs[0][start : start + len(content_IH)]  # bfloat16 under autocast
            gradient.addmm_(block_ID.T.to(gradient.dtype), content_IH)
            start += len(content_IH)
        return gradient, None, None, None


def _unit_blocks(content: ScaledContent, items: int, share: RowShare | None, like: Tensor) -> Any:
    """Content at unit length, block by block, in the type and on the device of `like`: of all items, or of a share."""
    for start in range(0, items, _BLOCK):
        rows = torch.arange(start, min(start + _BLOCK, items), device=like.device)
        yield F.normalize(content(rows if share is None else share.rows(rows)).to(like.dtype), dim=1)


def seen_items(interactions: TrainingInteractions, n_items: int) -> Tensor:
    """(I,) bool: whether each item has a training interaction; False for padding."""
    seen_I = torch.bincount(interactions.items, minlength=n_items) > 0
    seen_I[0] = False
    return seen_I


def shortened(batch: Batch, share: float, noise: KeyedNoise) -> Batch:
    """`batch`, in which a `share` of the rows keep only their first 1..n-1 of n items (a uniform draw), and the target.

    Rows with one item are unchanged. The rows' keys determine all draws.
    """
    if not share:
        return batch
    picked_B, cut_B = noise.uniform(batch.key, (2,), Stream.SHORTENING).unbind(1)
    length_B = torch.where(
        (picked_B < share) & (batch.length > 1), 1 + (cut_B * (batch.length - 1)).long(), batch.length
    )
    kept_BL = torch.arange(batch.history.shape[1], device=length_B.device) < length_B[:, None]
    return replace(batch, history=batch.history * kept_BL, length=length_B, behaviours=batch.behaviours * kept_BL)
