"""Full-catalogue evaluation of a model on a split: the rank of every user's target, and metrics from these ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Baseline, SequenceModel, System
from models.errors import UserError
from models.nn.gather import Gather
from retrieval.exact import Histories, Ranks, for_similarity
from retrieval.files import whole_file
from retrieval.index.base import SAMPLE, Vectors
from retrieval.index.tune import sample
from retrieval.metrics.registry import DEFAULT, MetricChoice
from retrieval.metrics.summary import list_values, mean_metrics, warm_cold
from trainer.batches.loader import Loaded
from trainer.data.format.splits import Split, target_positions
from trainer.evaluation.catalogue_index import CatalogueIndex, Task
from trainer.evaluation.config import CRITERION, EvalConfig
from trainer.evaluation.exposure import ExposureCounter
from trainer.evaluation.rankers import make_ranker
from trainer.process import world

Ints = NDArray[np.int64]
_CRITERION = MetricChoice(("NDCG",), (10,))


@dataclass(frozen=True)
class Evaluation:
    """Ranks of one split, (U,) each, in the order of user rows; rank 0 means not found within the index's depth.

    rank: among all items. rank_masked: with the user's own history masked. cold: the target occurs in no training row.
    choice: the metrics to report. lists, lists_masked: metrics of lists by key, empty if they were not computed.
    """

    user: Ints
    target: Ints
    rank: Ints
    rank_masked: Ints
    cold: NDArray[np.bool_]
    seconds: float
    index: Mapping[str, Any] | None = None
    choice: MetricChoice = DEFAULT
    lists: Mapping[str, float] = field(default_factory=dict)
    lists_masked: Mapping[str, float] = field(default_factory=dict)

    @property
    def criterion(self) -> float:
        """NDCG@10, which decides about early stopping and the best epoch."""
        return mean_metrics(self.rank, _CRITERION)[CRITERION]

    def metrics(self) -> dict[str, float]:
        """The reported metrics by key. The history is not masked (RecBole's rule, D25)."""
        return self._in_order({**mean_metrics(self.rank, self.choice), **self.lists})

    def report(self) -> dict[str, Any]:
        """The content of test.json: metrics without and with the history masked, also for warm and cold targets alone.

        Metrics of lists are not split into warm and cold, because a list does not belong to one target.
        """
        apart = warm_cold(self.rank, self.cold, self.choice)
        masked = warm_cold(self.rank_masked, self.cold, self.choice)
        return {
            **self.metrics(),
            "users": len(self.user),
            "masked": self._in_order({**mean_metrics(self.rank_masked, self.choice), **self.lists_masked}),
            "warm": {"users": apart.warm.count, **apart.warm.metrics, "masked": masked.warm.metrics},
            "cold": {"users": apart.cold.count, **apart.cold.metrics, "masked": masked.cold.metrics},
            "index": dict(self.index) if self.index else {"kind": "exact", "approximate": False},
            "seconds": round(self.seconds, 3),
        }

    def _in_order(self, values: Mapping[str, float]) -> dict[str, float]:
        return {key: values[key] for key in self.choice.keys if key in values}

    def save(self, path: Path) -> None:
        """Write the ranks of all users as plain arrays, for significance tests; the file appears whole or not at all.

        Raises OSError.
        """
        with whole_file(path) as new, new.open("wb") as file:
            np.savez(
                file, user=self.user, target=self.target, rank=self.rank, rank_masked=self.rank_masked, cold=self.cold
            )


#: most scores to compute at once for a system without vectors
SCORES_AT_ONCE = 1 << 26


@torch.no_grad()
def evaluate(
    model: System,
    loaded: Loaded,
    split: Split,
    config: EvalConfig,
    *,
    with_lists: bool = False,
    indices: CatalogueIndex | None = None,
) -> Evaluation:
    """Rank the target of every user of `split` among the whole catalogue. Collective; every rank gets all results.

    The model must be in eval mode. Each process takes a contiguous share of the users. Noise is keyed by user, so
    neither the shares nor the batch size change the ranks. with_lists: also compute the metrics of lists that the
    configuration asks for. indices: keeps the index for further evaluations of the same item vectors.
    """
    started = time.perf_counter()
    rank, size = world()
    dataset = loaded.dataset
    users = np.array_split(np.arange(dataset.manifest.users, dtype=np.int64), size)[rank]
    task = Task(dataset.manifest.users, loaded.device, partial(_some_users, model, loaded, split, users))
    ranker = make_ranker(model, config, task, indices or CatalogueIndex())
    known = _Known(loaded, split)
    nobody = torch.zeros(0, dtype=torch.int64)  # a worker has no users if there are more workers than users
    parts = [Ranks(nobody, nobody)]
    counter: ExposureCounter | None = None
    if with_lists and config.choice.list_metrics():
        counter = ExposureCounter(config.ks, loaded.table.n_items, loaded.device)
    size_of_batch = config.batch_size
    if isinstance(model, Baseline):
        size_of_batch = min(size_of_batch, max(1, SCORES_AT_ONCE // loaded.table.n_items))
    k = max(config.ks) if counter else 0
    for batch in loaded.evaluation_batches(split, users, size_of_batch):
        ranks, lists = ranker.rank(batch, known.histories(batch.user.cpu()), k)
        parts.append(Ranks(ranks.all_items.cpu(), ranks.history_masked.cpu()))
        if counter is not None and lists is not None:
            counter.add(lists)
    if model.share is not None:  # others may have one batch more, in which this worker has to take part
        batches = [-(-number // size_of_batch) for number in (len(users), -(-dataset.manifest.users // size))]
        for batch in loaded.evaluation_batches(split, np.zeros(batches[1] - batches[0], dtype=np.int64), 1):
            ranker.rank(batch, known.histories(batch.user.cpu()), k)
    ranker.finish()
    plain, masked = (_gather(torch.cat(column), loaded.device) for column in zip(*parts, strict=True))
    everything, unseen = counter.gather(len(plain), dataset.train_counts()) if counter else ([], [])
    return Evaluation(
        user=np.arange(dataset.manifest.users, dtype=np.int64),
        target=dataset.items[target_positions(dataset.offsets, split)].astype(np.int64),
        rank=plain, rank_masked=masked, cold=dataset.cold_mask(split),
        seconds=time.perf_counter() - started, index=ranker.describe(), choice=config.choice,
        lists=list_values(everything, config.choice), lists_masked=list_values(unseen, config.choice),
    )  # fmt: skip


def _some_users(model: System, loaded: Loaded, split: Split, users: Ints) -> Vectors:
    """(Q, D) vectors of at most SAMPLE of `users`, by which an index finds how widely to search."""
    assert isinstance(model, SequenceModel)
    (batch,) = loaded.evaluation_batches(split, sample(users, SAMPLE), SAMPLE)
    return for_similarity(model.user_vectors(batch), model.similarity).cpu().numpy()


class _Known:
    """All items that each user had seen before the target of a split, without the limit on history length."""

    def __init__(self, loaded: Loaded, split: Split) -> None:
        self._offsets = torch.from_numpy(np.array(loaded.dataset.offsets))
        self._items = loaded.dataset.items
        self._held_back = 1 if split == "test" else 2

    def histories(self, user: torch.Tensor) -> Histories:
        start, stop = self._offsets[user], self._offsets[user + 1] - self._held_back
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (stop - start).cumsum(0)])
        at = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1] - start, stop - start)
        return Histories(offsets, torch.from_numpy(self._items[at.numpy()].astype(np.int64)))


def _gather(values: torch.Tensor, device: torch.device) -> Ints:
    """Join the shares of all ranks, in rank order, by way of `device`. Every rank gets the whole array."""
    gathered: Ints = Gather.of(len(values), device)(values.to(device)).cpu().numpy()
    return gathered


def choose_inference(criteria: Mapping[str, float]) -> str:
    """The way of encoding users with the best validation NDCG@10; if several are equal, the first, the cheapest."""
    if not criteria:
        raise UserError("no way of encoding users was validated")
    return max(criteria, key=lambda name: criteria[name])
