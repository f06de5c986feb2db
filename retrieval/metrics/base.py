"""HR and NDCG from ranks, and the paired t-test between two runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.errors import UserError

#: every metric that is reported, in the order in which it is reported
METRIC_KEYS = ("HR@10", "NDCG@10", "HR@20", "NDCG@20")

Ranks = NDArray[np.integer[Any]]
Values = NDArray[np.float64]


def per_user(ranks: Ranks) -> dict[str, Values]:
    """Metrics of each user, by the keys of METRIC_KEYS.

    ranks: (U,) integers, 1-based; 0 means not found within the searched depth. Values: (U,) float64.
    With one target per user the ideal DCG is 1, so NDCG@k is 1 / log2(rank + 1) for a rank within k.
    """
    if ranks.size and ranks.min() < 0:
        raise ValueError("ranks are 1-based, with 0 for a target that was not found")
    gain = 1.0 / np.log2(np.maximum(ranks, 1) + 1.0)
    metrics: dict[str, Values] = {}
    for k in (10, 20):
        hit = (ranks >= 1) & (ranks <= k)
        metrics[f"HR@{k}"] = hit.astype(np.float64)
        metrics[f"NDCG@{k}"] = np.where(hit, gain, 0.0)
    return metrics


def mean_metrics(ranks: Ranks) -> dict[str, float]:
    """Mean over users of each metric; empty when there is no user."""
    if not ranks.size:
        return {}
    return {key: float(values.mean()) for key, values in per_user(ranks).items()}


@dataclass(frozen=True)
class Group:
    """Mean metrics of `count` users; `metrics` is empty when there is none."""

    count: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class WarmCold:
    """Users whose target occurs in training rows, and users whose target does not."""

    warm: Group
    cold: Group


def warm_cold(ranks: Ranks, cold: NDArray[np.bool_]) -> WarmCold:
    """Metrics of warm and of cold targets apart. ranks: (U,); cold: (U,), True for a target unseen in training."""
    if ranks.shape != cold.shape:
        raise ValueError(f"{ranks.shape} ranks, {cold.shape} cold flags")
    warm_ranks, cold_ranks = ranks[~cold], ranks[cold]
    return WarmCold(
        Group(int(warm_ranks.size), mean_metrics(warm_ranks)), Group(int(cold_ranks.size), mean_metrics(cold_ranks))
    )


@dataclass(frozen=True)
class PairedTest:
    """Paired two-sided t-test of `a - b` over `n` users, with the confidence interval of the mean difference."""

    mean_difference: float
    t: float
    p: float
    n: int
    low: float
    high: float
    confidence: float


def paired_t_test(a: Values, b: Values, confidence: float = 0.95) -> PairedTest:
    """Test whether the mean of a per-user metric differs between two runs on the same users.

    a, b: (n,) values of the same users in the same order, n >= 2. Equal vectors give t = 0 and p = 1.
    Raises UserError when the runs do not have the same number of users, or fewer than 2.
    """
    if a.shape != b.shape:
        raise UserError(
            f"the runs cannot be paired: one has {a.size:,} users, the other {b.size:,}; "
            "compare runs that were evaluated on the same dataset and split"
        )
    n = int(a.size)
    if n < 2:
        raise UserError(f"a paired t-test needs at least 2 users, there are {n}; evaluate on more users")
    if np.array_equal(a, b):
        return PairedTest(0.0, 0.0, 1.0, n, 0.0, 0.0, confidence)
    with warnings.catch_warnings():  # a constant difference has no variance: t is infinite, and scipy warns of it
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ttest_rel(a, b)
        interval = result.confidence_interval(confidence)
    return PairedTest(
        mean_difference=float(np.mean(a - b)),
        t=float(result.statistic),
        p=float(result.pvalue),
        n=n,
        low=float(interval.low),
        high=float(interval.high),
        confidence=confidence,
    )
