"""Rank the items of an exported model for histories of item rows, exactly or by an index."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.contract import Baseline, Batch, SequenceModel
from models.errors import UserError
from retrieval.batches import BATCH, batches
from retrieval.exact import Histories, exact_topk, for_similarity, score_topk
from retrieval.export import ModelCard
from retrieval.index.faiss_index import Index
from retrieval.index.search import index_topk

#: item rows, oldest first, at least one for each user; or rows that a user does not get
Rows = Sequence[Sequence[int]]


class Ranker:
    """Nothing in it changes after it was made, so threads may share one."""

    index: Index | None = None

    def __init__(self, card: ModelCard, model: SequenceModel | Baseline, item_vectors: Tensor) -> None:
        """item_vectors: (I, D), on the model's device; row 0 is padding. They are ranked exactly; see `by`."""
        self.card, self.model = card, model
        #: (I, D) float32, of length 1 if the similarity is cosine
        self.item_vectors = for_similarity(item_vectors, card.similarity)

    def by(self, index: Index | None) -> Ranker:
        """The same model, ranking by `index`, or exactly."""
        other = copy.copy(self)
        other.index = index
        return other

    @property
    def description(self) -> str:
        """How items are ranked, in words: exactly or by an index, and on which device."""
        exact = f"exact on {self.item_vectors.device}, {len(self.item_vectors) - 1:,} items"
        return self.index.description if self.index else exact

    @torch.no_grad()
    def encode(self, histories: Rows) -> Tensor:
        """(B, D) float32 user vectors; of length 1 for cosine. Raises UserError for a baseline, which has none."""
        model = self.require_vectors()
        vectors = torch.cat([model.user_vectors(batch) for batch in self._batches(histories)])
        return for_similarity(vectors, self.card.similarity)

    def require_vectors(self) -> SequenceModel:
        """The model, which has vectors. Raises UserError for a baseline."""
        if isinstance(self.model, Baseline):
            raise UserError(f"{self.card.system} ranks without vectors, so it has no index and no similar items")
        return self.model

    @torch.no_grad()
    def topk(self, histories: Rows, excluded: Rows, k: int, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and item rows, (B, k) each, best first. k: at most the number of items. Where fewer than k are left,
        the row is 0. candidates: (C,) item rows, ascending; only these are ranked, as a catalogue of their own."""
        columns = None if candidates is None else torch.cat([candidates.new_zeros(1), candidates])
        if columns is not None:
            places = {row: place for place, row in enumerate(columns.tolist())}
            excluded = [[places[row] for row in rows if row in places] for rows in excluded]
        if isinstance(self.model, Baseline):
            scores, ids = self._by_scores(self.model, histories, excluded, k, columns)
        elif self.index is None or columns is not None:
            vectors = self.item_vectors if columns is None else self.item_vectors[columns]
            scores, ids = exact_topk(self.encode(histories), vectors, k, Histories.of(excluded))
        else:
            scores, ids = index_topk(self.index, self.encode(histories), self.item_vectors, k, Histories.of(excluded))
        return scores, ids if columns is None else columns[ids]

    def nearest(self, row: int, k: int) -> tuple[Tensor, Tensor]:
        """Scores and rows, (1, k) each, of the items whose vectors are nearest to an item's, itself left out.

        Raises UserError for a baseline.
        """
        self.require_vectors()
        return exact_topk(self.item_vectors[row : row + 1], self.item_vectors, k, Histories.of([[row]]))

    @torch.no_grad()
    def scores_of(self, histories: Rows, rows: Sequence[int]) -> Tensor:
        """(B, T) the scores of T items for each history."""
        if isinstance(self.model, Baseline):
            return torch.cat([self.model.scores(batch)[:, rows] for batch in self._batches(histories)])
        return self.encode(histories) @ self.item_vectors[rows].T

    @torch.no_grad()
    def frame_changes(self, history: Sequence[int]) -> list[float]:
        """`SequenceModel.frame_changes` of one history; empty for a system that denoises no frames."""
        (batch,) = self._batches([history])
        found = None if isinstance(self.model, Baseline) else self.model.frame_changes(batch)
        return [] if found is None else found[0].tolist()

    def _by_scores(
        self, model: Baseline, histories: Rows, excluded: Rows, k: int, columns: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for start, batch in zip(range(0, len(histories), BATCH), self._batches(histories), strict=True):
            scores = model.scores(batch)
            scores = scores if columns is None else scores[:, columns]
            parts.append(score_topk(scores, k, Histories.of(excluded[start : start + BATCH])))
        return torch.cat([scores for scores, _ in parts]), torch.cat([ids for _, ids in parts])

    def _batches(self, histories: Rows) -> Iterator[Batch]:
        return batches(histories, self.card.max_length, self.item_vectors.device)
