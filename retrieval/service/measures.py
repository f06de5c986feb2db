"""Prometheus metrics of one replica of the service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Measures:
    """Counters in a registry of their own, so that two services in one process do not share them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mealrec_requests", "Requests by path and status", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "mealrec_request_seconds", "Time to answer", ["path"], buckets=_SECONDS, registry=self._registry
        )
        self.batch = Histogram(
            "mealrec_batch_size", "Requests that were answered together", buckets=_SIZES, registry=self._registry
        )
        self.recall = Gauge(
            "mealrec_index_recall", "Share of the exact top k that the index finds, by samples; NaN before the first",
            registry=self._registry,
        )  # fmt: skip
        self.recall.set(float("nan"))
        self.reloads = Counter(
            "mealrec_reloads", "Reloads of the model by outcome", ["outcome"], registry=self._registry
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
