"""Metrics of many users: per user, as means, and separately for warm and cold targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics.base import Exposure, RankMetric, UserRanks, Values
from retrieval.metrics.registry import DEFAULT, METRICS, MetricChoice, parse_key


def per_user(ranks: UserRanks, choice: MetricChoice = DEFAULT) -> dict[str, Values]:
    """The rank metrics of `choice` by key, (U,) float64 each. ranks: (U,) as UserRanks."""
    if ranks.size and ranks.min() < 0:
        raise ValueError("ranks are 1-based, with 0 for a target that was not found")
    metrics = choice.rank_metrics()
    return {f"{name}@{k}": metric.per_user(ranks, k) for k in choice.ks for name, metric in metrics.items()}


def mean_metrics(ranks: UserRanks, choice: MetricChoice = DEFAULT) -> dict[str, float]:
    """Mean over users of each rank metric of `choice`; empty when there is no user."""
    if not ranks.size:
        return {}
    return {key: float(values.mean()) for key, values in per_user(ranks, choice).items()}


@dataclass(frozen=True)
class TargetGroup:
    """Mean metrics of the `count` users whose target is of one kind; `metrics` is empty if `count` is 0."""

    count: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class WarmCold:
    """Users whose target occurs in training rows, and users whose target does not."""

    warm: TargetGroup
    cold: TargetGroup


def warm_cold(ranks: UserRanks, cold: NDArray[np.bool_], choice: MetricChoice = DEFAULT) -> WarmCold:
    """Metrics of warm and of cold targets separately. ranks: (U,). cold: (U,), True for a target unseen in training."""
    if ranks.shape != cold.shape:
        raise ValueError(f"{ranks.shape} ranks, {cold.shape} cold flags")
    warm, unseen = (TargetGroup(int(x.size), mean_metrics(x, choice)) for x in (ranks[~cold], ranks[cold]))
    return WarmCold(warm, unseen)


def list_values(exposures: Sequence[Exposure], choice: MetricChoice) -> dict[str, float]:
    """The list metrics of `choice` by key. exposures: one for each k."""
    metrics = choice.list_metrics()
    return {f"{name}@{each.k}": metric.value(each) for each in exposures for name, metric in metrics.items()}


def best_possible(key: str, shares: Sequence[float]) -> float | None:
    """The best possible value of the metric with this key; None if not known. shares: see RankMetric.best_possible."""
    parsed = parse_key(key)
    metric = METRICS[parsed[0]] if parsed else None
    return metric.best_possible(np.array(shares), parsed[1]) if parsed and isinstance(metric, RankMetric) else None
