"""Rank the catalogue for a batch of users: by scores, by exact inner products, or by an index with measured recall."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from models.contract import Baseline, Batch, SequenceModel, System
from models.errors import UserError
from retrieval.exact import Histories, Ranks, exact_ranks, exact_topk, for_similarity, score_ranks, score_topk
from retrieval.index.base import RECALL_K, Vectors
from retrieval.index.build import recall_of
from retrieval.index.faiss_index import Index
from retrieval.index.kinds import KINDS
from retrieval.index.search import by_depth, seen_before
from trainer.evaluation.catalogue_index import CatalogueIndex, Task
from trainer.evaluation.config import RECALL, EvalConfig
from trainer.evaluation.share_ranker import ShareRanker
from trainer.evaluation.top_lists import TopLists
from trainer.evaluation.worker_shards import WorkerShards
from trainer.process import sum_over_ranks, world


class Ranker(Protocol):
    """Computes the ranks of the users' targets, and on request the users' top-k lists."""

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """Ranks (B,), from 1, or 0 if the target was not found; and lists of length k, None for k = 0."""

    def finish(self) -> None:
        """After the last batch of this worker. Collective."""

    def describe(self) -> dict[str, Any] | None:
        """The index and its recall against exact ranking; for exact ranking why, or None where it was asked for."""


def make_ranker(model: System, config: EvalConfig, task: Task, indices: CatalogueIndex) -> Ranker:
    """The ranker for `model` and `task` that `config` asks for. Collective.

    Raises UserError for an index of a system without item vectors.
    """
    if isinstance(model, Baseline):
        if config.index not in ("auto", "exact"):
            raise UserError(f"eval.index={config.index}: this system has no item vectors to index; use exact")
        return ScoreRanker(model)
    assert isinstance(model, SequenceModel)
    items_ID = for_similarity(model.item_vectors(), model.similarity)
    if model.share is not None:
        return ShareRanker(model, items_ID)
    kind, why = config.ranking(len(items_ID) - 1, task.users)
    if kind == "exact":  # before the vectors are copied to the host
        return ExactRanker(model, items_ID, why)
    vectors = items_ID.cpu().numpy()
    choice = indices.of(vectors, config, task)
    if choice.index is None:
        return ExactRanker(model, items_ID, choice.why)
    index: Index = choice.index
    if config.sharded and world()[1] > 1:
        index = WorkerShards(choice.index, choice.first, task.device)
    return IndexRanker(model, config, vectors, index, choice.why)


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

    def finish(self) -> None:
        """Nothing to do: this worker ranked on its own."""

    def describe(self) -> None:
        """Nothing to say: this is exact."""


class ExactRanker:
    """Ranks by inner products with all items."""

    def __init__(self, model: SequenceModel, items_ID: Tensor, why: str = "") -> None:
        """why: the reason for it, where the program chose; else empty."""
        self._model, self._items, self._why = model, items_ID, why

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`."""
        vectors = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        ranks = exact_ranks(vectors, self._items, batch.target, histories)
        if not k:
            return ranks, None
        everything, masked = (exact_topk(vectors, self._items, k, exclude)[1] for exclude in (None, histories))
        return ranks, TopLists(everything, masked)

    def finish(self) -> None:
        """Nothing to do: this worker ranked on its own."""

    def describe(self) -> dict[str, Any] | None:
        """Why this is exact, if the program chose it."""
        return {"kind": "exact", "approximate": False, "why": self._why} if self._why else None


class IndexRanker:
    """Ranks by an index, and measures its recall for a sample of users.

    What is evaluated is the index: where it finds too few items, nothing is filled in, but those users are counted.
    """

    def __init__(self, model: SequenceModel, config: EvalConfig, items: Vectors, index: Index, why: str = "") -> None:
        """items: (I, D) the vectors in `index`. why: the reason for it, where the program chose; else empty."""
        self._model, self._items, self._index, self._why = model, items, index, why
        real = len(items) - 1
        self._depth, self._k = min(config.depth, real), min(RECALL_K, real)
        self._sample = -(-config.recall_sample // world()[1])  # of this worker's users
        self._recalled, self._sampled, self._short = 0.0, 0, 0

    def rank(self, batch: Batch, histories: Histories, k: int) -> tuple[Ranks, TopLists | None]:
        """See `Ranker.rank`. A rank is also 0 if it is beyond the depth."""
        queries = for_similarity(self._model.user_vectors(batch), self._model.similarity).cpu().numpy()
        seen_B = torch.bincount(histories.pairs(0, len(queries), len(self._items))[0], minlength=len(queries))
        ranks = Ranks(*(torch.zeros(len(queries), dtype=torch.int64) for _ in range(2)))
        lists = TopLists(*(torch.zeros(len(queries), max(k, self._k), dtype=torch.int64) for _ in range(2)))
        # as much deeper as the history is long, so that masking it leaves enough
        for rows, depth in by_depth(self._depth + seen_B, self._index.limit):
            ids = torch.from_numpy(self._index.search(queries[rows.numpy()], depth)[1])
            seen = seen_before(ids, histories.of_rows(rows), len(self._items))
            self._rank_found(ids, seen, batch.target.cpu()[rows], rows, ranks)
            unseen = ids.gather(1, seen.int().sort(dim=1, stable=True)[1])  # move seen items to the end
            unseen[torch.arange(depth) >= depth - seen.sum(1)[:, None]] = 0
            for out, found in zip(lists, (ids, unseen), strict=True):
                out[rows, :depth] = found[:, : out.shape[1]]
            wanted = (self._depth + seen_B[rows]).clamp(max=len(self._items) - 1)
            self._short += int(((ids > 0).sum(1) < wanted).sum())
        self._measure_recall(queries, lists.all_items)
        return ranks, TopLists(*(out[:, :k] for out in lists)) if k else None

    def _rank_found(self, ids: Tensor, seen: Tensor, target_B: Tensor, rows: Tensor, ranks: Ranks) -> None:
        """Write the ranks of the users in `rows`. ids: (B, depth) what was found, seen: whether it was seen before."""
        hit = ids == target_B[:, None]
        place = torch.where(hit.any(1), hit.int().argmax(1) + 1, 0)
        before = (seen & (torch.arange(ids.shape[1]) < place[:, None] - 1)).sum(1)
        for out, rank in zip(ranks, (place, place - before), strict=True):
            out[rows] = rank.where((place > 0) & (rank <= self._depth), 0)

    def _measure_recall(self, queries: Vectors, ids: Tensor) -> None:
        wanted = min(len(ids), self._sample - self._sampled)
        if wanted > 0:
            recall = recall_of(ids[:wanted, : self._k].numpy(), queries[:wanted], self._items)
            self._recalled, self._sampled = self._recalled + wanted * recall, self._sampled + wanted

    def finish(self) -> None:
        """Search for the other workers what they have left, if each has a shard of the index."""
        if isinstance(self._index, WorkerShards):
            self._index.finish()

    def describe(self) -> dict[str, Any]:
        """The index, its recall against exact ranking, and for how many users it found fewer items than the depth.

        Of the users of all ranks: collective.
        """
        counts = sum_over_ranks([self._recalled, float(self._sampled), float(self._short)])
        kind = self._index.kind
        recalled, sampled, short = counts[0], int(counts[1]), int(counts[2])
        return {
            "kind": kind, "approximate": not KINDS[kind].exact, **({"why": self._why} if self._why else {}),
            "description": self._index.description, "depth": self._depth,
            RECALL: recalled / max(1, sampled), "recall_users": sampled, "short_users": short,
        }  # fmt: skip
