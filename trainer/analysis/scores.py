"""What a model's scores say of a sample of users: how likely a hit is, what is shown, and whose vectors are near."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Baseline, Batch, SequenceModel
from retrieval.exact import for_similarity
from trainer.analysis.record import Calibration, CalibrationBin
from trainer.batches.loader import Loaded
from trainer.data.format.splits import Split
from trainer.evaluation.run_ranks import RunRanks

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
#: length of the lists that are looked at
K = 10
#: scores in memory at a time
_SCORES = 1 << 24
#: validation scores from which the temperature is fitted
_FITTED = 20_000_000
_BINS = 10
#: temperatures that are tried, as multiples of the deviation of the scores
_TEMPERATURES = 2.0 ** np.arange(-6, 4.01, 0.25)

Scores = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Shown:
    """What is shown to a sample of users: users (N,) rows; expected (N,) hit rates of their first K items, as the
    scores promise; items (N, K) item rows, best first; scores (N, K)."""

    users: Ints
    expected: Floats
    items: Ints
    scores: Floats


def sample_users(users: int, count: int, seed: int) -> Ints:
    """At most `count` user rows, ascending; the same for the same numbers."""
    if users <= count:
        return np.arange(users, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(users, count, replace=False, shuffle=False)).astype(np.int64)


def scorer(model: SequenceModel | Baseline) -> Scores:
    """A function from a batch to (B, I - 1) float32 scores of all items; column c is item row c + 1."""
    if isinstance(model, Baseline):
        return lambda batch: model.scores(batch)[:, 1:]
    items = for_similarity(model.item_vectors(), model.similarity)[1:]
    return lambda batch: for_similarity(model.user_vectors(batch), model.similarity) @ items.T


@torch.no_grad()
def fit_temperature(scores: Scores, loaded: Loaded, seed: int) -> float:
    """The temperature at which the softmax over all items gives validation targets the highest likelihood.

    Of a fixed grid, relative to the deviation of the scores. Source: temperature scaling, Guo et al. 2017.
    """
    users = sample_users(loaded.dataset.manifest.users, max(100, min(1000, _FITTED // loaded.table.n_items)), seed)
    tried: Tensor | None = None
    losses = torch.zeros(len(_TEMPERATURES), dtype=torch.float64)
    for batch in _batches(loaded, "validation", users):
        found = scores(batch).double().cpu()
        if tried is None:
            spread = float(found.std(dim=1).mean()) or 1.0
            tried = torch.from_numpy(_TEMPERATURES * spread)
        target = found.gather(1, batch.target.cpu()[:, None] - 1)[:, 0]
        for place, temperature in enumerate(tried):
            losses[place] += (torch.logsumexp(found / temperature, dim=1) - target / temperature).sum()
    assert tried is not None
    return float(tried[losses.argmin()])


@torch.no_grad()
def shown_to(scores: Scores, loaded: Loaded, users: Ints, temperature: float) -> Shown:
    """The first K items for the test of `users`, every item ranked, and the hit rate that their scores promise."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in _batches(loaded, "test", users):
        found = scores(batch).double().cpu()
        top, place = found.topk(min(K, found.shape[1]), dim=1)
        whole = torch.logsumexp(found / temperature, dim=1, keepdim=True)
        parts.append((torch.exp(top / temperature - whole).sum(1), place + 1, top))
    expected_N, items_NK, top_NK = (torch.cat(column) for column in zip(*parts, strict=True))
    return Shown(users, expected_N.numpy(), items_NK.numpy(), top_NK.numpy())


def calibration(shown: Shown, ranks: RunRanks, temperature: float) -> Calibration:
    """Users in ten bins by the hit rate that their scores promise, and the hit rate they had."""
    rank = ranks.rank[shown.users]
    hit = (rank >= 1) & (rank <= K)
    order = np.argsort(shown.expected, kind="stable")
    bins = []
    for part in np.array_split(order, min(_BINS, len(order))):
        expected, observed = float(shown.expected[part].mean()), float(hit[part].mean())
        bins.append(CalibrationBin(users=len(part), expected=expected, hit_rate=observed))
    error = sum(each.users * abs(each.expected - each.hit_rate) for each in bins) / len(order)
    return Calibration(k=K, users=len(order), temperature=temperature, error=error, bins=tuple(bins))


@torch.no_grad()
def vectors_of(model: SequenceModel, loaded: Loaded, users: Ints) -> Tensor:
    """(N, D) float32 vectors of length 1 of the test of `users`, on the CPU."""
    parts = [model.user_vectors(batch).float().cpu() for batch in _batches(loaded, "test", users)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _batches(loaded: Loaded, split: Split, users: Ints) -> Iterator[Batch]:
    size = max(1, min(2048, _SCORES // loaded.table.n_items))
    return loaded.evaluation_batches(split, users, size)
