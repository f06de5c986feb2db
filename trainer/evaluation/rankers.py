"""Rank the catalogue for a batch of users: by scores, by exact inner products, or by an index with measured recall."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.contract import Baseline, Batch, SequenceModel, System
from models.errors import UserError
from retrieval.exact import Histories, Ranks, exact_ranks, exact_topk, for_similarity, score_ranks, score_topk
from retrieval.index.build import build_index
from retrieval.index.faiss_index import Index
from trainer.evaluation.config import EvalConfig


class TopLists(NamedTuple):
    """The top items of each user, (B, k) int64 item rows, best first, 0 where there are no more: out of all items, and
    without the user's own history.
    """

    all_items: Tensor
    history_masked: Tensor


class Ranker(Protocol):
    """Computes the ranks of the users' targets, and on request the users' top-k lists."""

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """Ranks (B,), from 1, or 0 if the target was not found; and lists of length k, None for k = 0."""

    def describe(self) -> dict[str, Any] | None:
        """The index and its recall against exact ranking; None for exact ranking."""


def make_ranker(model: System, config: EvalConfig) -> Ranker:
    """The ranker for `model` that `config` asks for. Raises UserError for an index of a system without item vectors."""
    if isinstance(model, Baseline):
        if config.index != "exact":
            raise UserError(f"eval.index={config.index}: this system has no item vectors to index; use exact")
        return ScoreRanker(model)
    assert isinstance(model, SequenceModel)
    return ExactRanker(model) if config.index == "exact" else IndexRanker(model, config)


class ScoreRanker:
    """Ranks by the scores of a system without vectors."""

    def __init__(self, model: Baseline) -> None:
        self._model = model

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`."""
        scores = self._model.scores(batch)
        ranks = score_ranks(scores, batch.target, histories)
        if not k:
            return ranks, None
        return ranks, TopLists(score_topk(scores, k)[1], score_topk(scores, k, histories)[1])

    def describe(self) -> None:
        """Nothing to say: this is exact."""


class ExactRanker:
    """Ranks by inner products with all items."""

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        self._items = for_similarity(model.item_vectors(), model.similarity)

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`."""
        vectors = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        ranks = exact_ranks(vectors, self._items, batch.target, histories)
        if not k:
            return ranks, None
        everything, masked = (exact_topk(vectors, self._items, k, exclude)[1] for exclude in (None, histories))
        return ranks, TopLists(everything, masked)

    def describe(self) -> None:
        """Nothing to say: this is exact."""


class IndexRanker:
    """Ranks by an index, and measures its recall for a sample of users. A list is short if the index found too few."""

    def __init__(self, model: SequenceModel, config: EvalConfig) -> None:
        self._model, self._config = model, config
        self._items = for_similarity(model.item_vectors(), model.similarity)
        self._index: Index = build_index(self._items.cpu().numpy(), config.index, checksum="evaluation")
        self._found, self._sampled = 0, 0

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`."""
        vectors = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        depth = min(self._config.depth, len(self._items) - 1)
        _, found = self._index.search(vectors.cpu().numpy(), depth)
        ids = torch.from_numpy(found)
        hit = ids == batch.target.cpu()[:, None]
        plain = torch.where(hit.any(1), hit.int().argmax(1) + 1, 0)
        user, item = histories.pairs(0, len(ids), len(self._items))
        # encode pairs as numbers: for large catalogues a table of users by items would not fit into memory
        row = torch.arange(len(ids))[:, None] * len(self._items)
        seen = torch.isin(row + ids.clamp(min=0), user * len(self._items) + item)
        before = (seen & (torch.arange(depth) < plain[:, None] - 1)).sum(1)
        self._measure_recall(vectors, ids)
        ranks = Ranks(plain, torch.where(plain > 0, plain - before, 0))
        if not k:
            return ranks, None
        unseen = ids.gather(1, seen.int().sort(dim=1, stable=True)[1])  # move seen items to the end
        unseen[torch.arange(depth) >= depth - seen.sum(1)[:, None]] = 0
        return ranks, TopLists(ids[:, :k], unseen[:, :k])

    def _measure_recall(self, vectors: torch.Tensor, ids: torch.Tensor) -> None:
        wanted = min(len(ids), self._config.recall_sample - self._sampled)
        if wanted <= 0:
            return
        _, exact = exact_topk(vectors[:wanted], self._items, min(20, len(self._items) - 1))
        same = (exact.cpu()[:, :, None] == ids[:wanted, None, : exact.shape[1]]).any(2)
        self._found, self._sampled = self._found + int(same.sum()), self._sampled + same.numel() // exact.shape[1]
        self._recall_depth = exact.shape[1]

    def describe(self) -> dict[str, Any]:
        """The index and its recall against exact ranking."""
        recall = self._found / max(1, self._sampled * self._recall_depth)
        return {
            "kind": self._config.index, "description": self._index.description, "depth": self._config.depth,
            "recall@20": recall, "recall_users": self._sampled,
        }  # fmt: skip
