"""SSDRec: self-augmented sequence denoising (Zhang et al. 2024), over the hierarchical denoising of HSD (2022).

There are three stages before the shared SASRec encoder. Relation graphs give item and user vectors (relations.py); two
items are inserted at the most inconsistent place of a history (augment.py, in training only); and noise is dropped
(denoise.py). As released, the encoder reads the ID table, and the vectors of the graphs only decide which items are
inserted and dropped. Deviations from the released code: docs/fidelity.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.contract import Batch, Clock, ModelContext
from models.nn.cache import Caching
from models.nn.gather import Gather, repeated
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.transformer import CausalEncoder, init_weights
from models.options.ssdrec import SSDRecOptions
from models.ssdrec.augment import Augmented, SelfAugmentation
from models.ssdrec.denoise import HierarchicalDenoising, filter_loss
from models.ssdrec.graphs import Relations
from models.ssdrec.relations import ItemRelations, UserRelations

#: the first epoch leaves out this share of the rows, those with the highest reconstruction error
_LEFT_OUT, _CURRICULUM_EPOCHS = 0.2, 10


class SSDRec(Caching, Backbone):
    """Encodes the items that denoising keeps of a history, and ranks by dot product with the ID table."""

    def __init__(self, options: SSDRecOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden)
        self.options = options
        self.loss_weights = dict.fromkeys(["ranking", *["reconstruction", "filter"] * options.denoise], 1.0)
        self.noise = KeyedNoise(context.seed)
        hidden, dropout = options.hidden, options.dropout
        self.encoder = CausalEncoder(
            context.max_length, hidden, options.inner, options.layers, options.heads,
            options.attention_dropout, options.hidden_dropout,
        )  # fmt: skip
        if options.augment or options.denoise:
            interactions = context.interactions
            relations = Relations.of(interactions, context.table.n_items, options.strong, options.neighbours)
            self.user_embedding = nn.Embedding(len(interactions.offsets) - 1, hidden)
            self.item_relations = ItemRelations(relations, hidden, dropout)
            self.user_relations = UserRelations(relations, hidden, dropout)
        self.augmentation = SelfAugmentation(hidden, self.noise) if options.augment else None
        self.denoising = None
        if options.denoise:
            self.denoising = HierarchicalDenoising(context.max_length, hidden, dropout, options.readout_dropout)
        self.apply(init_weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        rows = self._rows(batch)
        if self.denoising is None:
            return {"ranking": self.ranking_loss(self._encode(batch, rows, None), batch)}
        keep_BL, error_B = self._denoised(batch, rows)
        user_BD = self._encode(batch, rows, keep_BL)
        easy_b, share = easiest(error_B.detach(), batch.key, left_out(self.clock))
        return {
            "ranking": share * self.ranking_loss(user_BD[easy_b], batch[easy_b]),
            "reconstruction": share * error_B[easy_b].mean(),
            "filter": self._filter(batch, rows),
        }

    def encode(self, batch: Batch) -> Tensor:
        rows = self._rows(batch)
        return self._encode(batch, rows, None if self.denoising is None else self._denoised(batch, rows)[0])

    def _rows(self, batch: Batch) -> Augmented:
        """Histories (augmented in training), with vectors of the relation encoder if there is one."""
        real_BL = batch.history != 0
        if self.augmentation is None and self.denoising is None:
            nothing = self.item_embedding.weight.new_zeros(*batch.history.shape, 0)
            return Augmented(batch.history, nothing, real_BL.to(nothing.dtype), batch.length)
        item_ID = self.cached(lambda: self.item_relations(self.item_embedding.weight, self.user_embedding.weight))
        related_BD = self.user_relations(
            batch.user.clamp(min=0), self.user_embedding.weight, self.item_embedding.weight
        )
        share_BD = related_BD * (batch.user >= 0)[:, None] / batch.length[:, None]
        vector_BLD = (F.embedding(batch.history, item_ID) + share_BD[:, None]) * real_BL[:, :, None]
        rows = Augmented(batch.history, vector_BLD, real_BL.to(vector_BLD.dtype), batch.length)
        if self.augmentation is None or not self.training:
            return rows
        return self.augmentation(rows, item_ID, batch.key, self._tau())  # type: ignore[no-any-return]

    def _denoised(self, batch: Batch, rows: Augmented) -> tuple[Tensor, Tensor]:
        assert self.denoising is not None
        gumbel = self.noise.gumbel(batch.key, (2, 2, rows.item.shape[1]), Stream.SELECTION) if self.training else None
        item_BLD = self.item_embedding(rows.item)
        return self.denoising(  # type: ignore[no-any-return]
            item_BLD, rows.vector, self._user(batch), rows.length, gumbel, self._tau()
        )

    def _encode(self, batch: Batch, rows: Augmented, keep_BL: Tensor | None) -> Tensor:
        """(B, D) user vectors from the kept items, which are moved to the left first."""
        kept = rows
        if keep_BL is not None:
            kept = replace(rows, weight=rows.weight * keep_BL).compacted(keep_BL > 0)
        denoised = replace(batch, history=kept.item, length=kept.length, tokens=0)  # rows may have grown
        layout = Layout.of(denoised)
        token_ND = self.item_embedding(layout.flatten(kept.item)) * layout.flatten(kept.weight)[:, None]
        return self.encoder(token_ND, layout)  # type: ignore[no-any-return]

    def _user(self, batch: Batch) -> Tensor:
        """(B, D) rows of the user table; zeros for an unknown user."""
        return self.user_embedding(batch.user.clamp(min=0)) * (batch.user >= 0)[:, None]  # type: ignore[no-any-return]

    def _filter(self, batch: Batch, rows: Augmented) -> Tensor:
        negative_B = self.noise.integers(batch.key, 1, self.item_embedding.num_embeddings - 1, Stream.NEGATIVES)
        return filter_loss(
            self.item_embedding(rows.item), self._user(batch), self.item_embedding(negative_B), rows.length,
            batch.user >= 0, _LEFT_OUT - left_out(self.clock),
        )  # fmt: skip

    def _tau(self) -> float:
        return temperature(self.clock, self.options.tau, self.options.tau_least)


def easiest(error_B: Tensor, key_B: Tensor, leave: float) -> tuple[Tensor, Tensor]:
    """(b,) rows to learn from: all but the share `leave` with the highest errors among the rows of all workers.

    The second result is a factor for this worker's mean over its b rows. The engine weights each worker by its number
    of rows; with the factor, the weighted sum of the workers' means is the mean over all rows to learn from. With
    several workers the host waits for b.
    """
    one, gather = error_B.new_ones(()), Gather.of(len(error_B), error_B.device)
    if not leave:
        return torch.arange(len(error_B), device=error_B.device), one
    every_M = gather(error_B)
    if len(gather.counts) == 1:
        return every_M.topk(max(1, int(len(every_M) * (1 - leave))), largest=False).indices, one
    again_M = repeated(gather(key_B))
    total = len(again_M) - int(again_M.sum())
    count = max(1, int(total * (1 - leave)))
    limit = every_M.masked_fill(again_M, torch.inf).topk(count, largest=False).values[-1]
    easy_b = (error_B <= limit).nonzero().squeeze(1)
    if not len(easy_b):  # every worker takes part in every collective
        return torch.zeros(1, dtype=torch.int64, device=error_B.device), 0 * one
    return easy_b, one * len(easy_b) / len(error_B) * total / count


def left_out(clock: Clock) -> float:
    """Share of the rows that the curriculum leaves out: .2 in the first epoch, 0 from the tenth on, linear between."""
    return _LEFT_OUT * max(0.0, 1 - (clock.epoch - 1) / (_CURRICULUM_EPOCHS - 1))


def temperature(clock: Clock, start: float, least: float) -> float:
    """tau: starts at `start`, is multiplied by exp(-step / 1000) every 40 steps, and is never below `least`."""
    times = (clock.step + 1) // 40
    return max(least, start * math.exp(-0.04 * times * (times + 1) / 2))
