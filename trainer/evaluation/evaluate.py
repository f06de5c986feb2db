"""Full-catalogue evaluation of a model on a split: ranks per user, and every metric computed from them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from models.contract import Batch, Floor, SequenceModel, System
from models.errors import UserError
from retrieval.exact import Histories, Ranks, exact_ranks, exact_topk, for_similarity, score_ranks
from retrieval.index.base import Index
from retrieval.index.build import build_index
from retrieval.metrics.base import mean_metrics, warm_cold
from trainer.batches.loader import Loaded
from trainer.data.format.splits import Split, target_positions
from trainer.evaluation.config import EvalConfig
from trainer.process import world

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Ranks of one split, (U,) each, in the order of user rows; rank 0 means not found within the index's depth.

    rank: among all items. rank_masked: with the user's own history masked. cold: the target occurs in no training row.
    """

    user: Ints
    target: Ints
    rank: Ints
    rank_masked: Ints
    cold: NDArray[np.bool_]
    seconds: float
    index: Mapping[str, Any] | None = None

    def metrics(self) -> dict[str, float]:
        """HR@10, NDCG@10, HR@20, NDCG@20 with the history not masked (RecBole's rule, D25)."""
        return mean_metrics(self.rank)

    def report(self) -> dict[str, Any]:
        """The content of test.json: metrics, the same with the history masked, warm and cold targets apart."""
        apart = warm_cold(self.rank, self.cold)
        masked = warm_cold(self.rank_masked, self.cold)
        return {
            **self.metrics(),
            "users": len(self.user),
            "masked": mean_metrics(self.rank_masked),
            "warm": {"users": apart.warm.count, **apart.warm.metrics, "masked": masked.warm.metrics},
            "cold": {"users": apart.cold.count, **apart.cold.metrics, "masked": masked.cold.metrics},
            "index": dict(self.index) if self.index else {"kind": "exact"},
            "seconds": round(self.seconds, 3),
        }

    def save(self, path: Path) -> None:
        """Ranks per user as plain arrays, for tests of significance."""
        with path.open("wb") as file:
            np.savez(
                file, user=self.user, target=self.target, rank=self.rank, rank_masked=self.rank_masked, cold=self.cold
            )


#: scores that a system without vectors gives at once
_SCORES_AT_ONCE = 1 << 26


@torch.no_grad()
def evaluate(model: System, loaded: Loaded, split: Split, config: EvalConfig) -> Evaluation:
    """Rank the target of every user of `split` against the whole catalogue. Collective; complete on every rank.

    The model is in eval mode. Each rank takes a contiguous share of the users; noise is keyed by
    user, so that the ranks depend neither on the shares nor on the batch size.
    """
    started = time.perf_counter()
    rank, size = world()
    users = np.array_split(np.arange(loaded.dataset.manifest.users, dtype=np.int64), size)[rank]
    ranker = _ranker(model, config)
    known = _Known(loaded, split)
    nobody = torch.zeros(0, dtype=torch.int64)  # the share of a worker when there are more workers than users
    parts = [Ranks(nobody, nobody)]
    size_of_batch = config.batch_size
    if isinstance(model, Floor):
        size_of_batch = min(size_of_batch, max(1, _SCORES_AT_ONCE // loaded.table.n_items))
    for batch in loaded.evaluation_batches(split, users, size_of_batch):
        ranks = ranker.ranks(batch, known.histories(batch.user.cpu()))
        parts.append(Ranks(ranks.all_items.cpu(), ranks.history_masked.cpu()))
    plain, masked = (_gather(torch.cat(column)) for column in zip(*parts, strict=True))
    dataset = loaded.dataset
    return Evaluation(
        user=np.arange(dataset.manifest.users, dtype=np.int64),
        target=dataset.items[target_positions(dataset.offsets, split)].astype(np.int64),
        rank=plain, rank_masked=masked, cold=dataset.cold_mask(split),
        seconds=time.perf_counter() - started, index=ranker.describe(),
    )  # fmt: skip


class _Known:
    """What each user had seen before the target of a split, without the limit on history length."""

    def __init__(self, loaded: Loaded, split: Split) -> None:
        self._offsets = torch.from_numpy(np.array(loaded.dataset.offsets))
        self._items = loaded.dataset.items
        self._held_back = 1 if split == "test" else 2

    def histories(self, user: torch.Tensor) -> Histories:
        start, stop = self._offsets[user], self._offsets[user + 1] - self._held_back
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (stop - start).cumsum(0)])
        at = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1] - start, stop - start)
        return Histories(offsets, torch.from_numpy(self._items[at.numpy()].astype(np.int64)))


def _ranker(model: System, config: EvalConfig) -> _Scores | _Exact | _Approximate:
    if isinstance(model, Floor):
        if config.index != "exact":
            raise UserError(f"eval.index={config.index}: this system has no item vectors to index; use exact")
        return _Scores(model)
    assert isinstance(model, SequenceModel)
    return _Exact(model) if config.index == "exact" else _Approximate(model, config)


class _Scores:
    """Ranks by the scores of a system that has no vectors."""

    def __init__(self, model: Floor) -> None:
        self._model = model

    def ranks(self, batch: Batch, histories: Histories) -> Ranks:
        return score_ranks(self._model.scores(batch), batch.target, histories)

    def describe(self) -> None:
        """Nothing to say: this is exact."""


class _Exact:
    """Ranks by inner products with the whole catalogue."""

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        self._items = for_similarity(model.item_vectors(), model.similarity)

    def ranks(self, batch: Batch, histories: Histories) -> Ranks:
        vectors = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        return exact_ranks(vectors, self._items, batch.target, histories)

    def describe(self) -> None:
        """Nothing to say: this is exact."""


class _Approximate:
    """Ranks by an approximate index whose recall it measures on a sample."""

    def __init__(self, model: SequenceModel, config: EvalConfig) -> None:
        self._model, self._config = model, config
        self._items = for_similarity(model.item_vectors(), model.similarity)
        self._index: Index = build_index(self._items.cpu().numpy(), config.index, checksum="evaluation")
        self._found, self._sampled = 0, 0

    def ranks(self, batch: Batch, histories: Histories) -> Ranks:
        vectors = for_similarity(self._model.user_vectors(batch), self._model.similarity)
        depth = min(self._config.depth, len(self._items) - 1)
        _, found = self._index.search(vectors.cpu().numpy(), depth)
        ids = torch.from_numpy(found)
        hit = ids == batch.target.cpu()[:, None]
        plain = torch.where(hit.any(1), hit.int().argmax(1) + 1, 0)
        user, item = histories.pairs(0, len(ids), len(self._items))
        # pairs as numbers: a table of users by items would not fit for the catalogues that an index is for
        row = torch.arange(len(ids))[:, None] * len(self._items)
        seen = torch.isin(row + ids.clamp(min=0), user * len(self._items) + item)
        before = (seen & (torch.arange(depth) < plain[:, None] - 1)).sum(1)
        self._measure_recall(vectors, ids)
        return Ranks(plain, torch.where(plain > 0, plain - before, 0))

    def _measure_recall(self, vectors: torch.Tensor, ids: torch.Tensor) -> None:
        wanted = min(len(ids), self._config.recall_sample - self._sampled)
        if wanted <= 0:
            return
        _, exact = exact_topk(vectors[:wanted], self._items, min(20, len(self._items) - 1))
        same = (exact.cpu()[:, :, None] == ids[:wanted, None, : exact.shape[1]]).any(2)
        self._found, self._sampled = self._found + int(same.sum()), self._sampled + same.numel() // exact.shape[1]
        self._recall_depth = exact.shape[1]

    def describe(self) -> dict[str, Any]:
        """What ranked, and how near to exact it is."""
        recall = self._found / max(1, self._sampled * self._recall_depth)
        return {
            "kind": self._config.index, "description": self._index.description, "depth": self._config.depth,
            "recall@20": recall, "recall_users": self._sampled,
        }  # fmt: skip


def _gather(values: torch.Tensor) -> Ints:
    """Every rank's share, in rank order, as one array on every rank."""
    size = world()[1]
    if size == 1:
        return values.numpy().astype(np.int64)
    shares: list[Any] = [None] * size
    dist.all_gather_object(shares, values.tolist())
    return np.concatenate([np.array(share, dtype=np.int64) for share in shares])


def choose_inference(reports: Mapping[str, Mapping[str, float]]) -> str:
    """The way of encoding users with the best validation NDCG@10; the first of equals (the cheapest)."""
    if not reports:
        raise UserError("no way of encoding users was validated")
    return max(reports, key=lambda name: reports[name]["NDCG@10"])
