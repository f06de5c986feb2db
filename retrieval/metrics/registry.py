"""The metrics by name, and the choice of metrics for a run.

To add a metric, write its file and a line here, or call METRICS.register.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import UserError
from models.registry import Registry
from retrieval.metrics.base import ListMetric, Metric, RankMetric
from retrieval.metrics.lists import Coverage, Novelty
from retrieval.metrics.ranks import MRR, NDCG, HitRate, Recall

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "HR": HitRate(),
        "NDCG": NDCG(),
        "MRR": MRR(),
        "Recall": Recall(),
        "Coverage": Coverage(),
        "Novelty": Novelty(),
    },
)


@dataclass(frozen=True)
class MetricChoice:
    """Every metric of `names` in the top k, for every k of `ks`. The key of a value is NAME@k, such as "NDCG@10".

    Raises UserError for an unknown metric (with the nearest name), a k below 1, an entry named twice, or an empty list.
    """

    names: tuple[str, ...] = ("HR", "NDCG")
    ks: tuple[int, ...] = (10, 20)

    def __post_init__(self) -> None:
        for name in self.names:
            _ = METRICS[name]
        for what, entries in (("metrics", self.names), ("ks", self.ks)):
            if not entries or len(set(entries)) < len(entries):
                raise UserError(f"{what}: name at least one, and each once (given: {', '.join(map(str, entries))})")
        if min(self.ks) < 1:
            raise UserError(f"ks: {min(self.ks)} is not the length of a list; choose 1 or more")

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys in the order of reports: all metrics for the first k, then all metrics for the next k."""
        return tuple(f"{name}@{k}" for k in self.ks for name in self.names)

    def rank_metrics(self) -> dict[str, RankMetric]:
        """Metrics of ranks, by name."""
        return {name: metric for name in self.names if isinstance(metric := METRICS[name], RankMetric)}

    def list_metrics(self) -> dict[str, ListMetric]:
        """Metrics of lists, by name."""
        return {name: metric for name in self.names if isinstance(metric := METRICS[name], ListMetric)}


DEFAULT = MetricChoice()


def parse_key(key: str) -> tuple[str, int] | None:
    """("NDCG", 10) for "NDCG@10"; None if `key` has another form, or its metric is not registered."""
    name, separator, k = key.rpartition("@")
    if not separator or name not in METRICS or not (k.isascii() and k.isdecimal()) or int(k) < 1:
        return None
    return name, int(k)
