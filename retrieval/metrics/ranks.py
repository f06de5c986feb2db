"""Metrics of the rank of each user's one target.

Source: Jarvelin and Kekalainen 2002 (NDCG), Voorhees 1999 (reciprocal rank); HR and Recall are counts.
"""

from __future__ import annotations

import numpy as np

from retrieval.metrics.base import RankMetric, UserRanks, Values


def within(ranks: UserRanks, k: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(U,) bool: the target was found, at rank k or before."""
    return (ranks >= 1) & (ranks <= k)


class HitRate(RankMetric):
    """HR@k: 1 for a target in the top k."""

    def per_user(self, ranks: UserRanks, k: int) -> Values:
        return within(ranks, k).astype(np.float64)


class NDCG(RankMetric):
    """NDCG@k: with one target the ideal DCG is 1, so it is 1 / log2(rank + 1) for a rank within k."""

    def per_user(self, ranks: UserRanks, k: int) -> Values:
        return np.where(within(ranks, k), 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


class MRR(RankMetric):
    """MRR@k: 1 / rank for a rank within k."""

    def per_user(self, ranks: UserRanks, k: int) -> Values:
        return np.where(within(ranks, k), 1.0 / np.maximum(ranks, 1), 0.0)


class Recall(RankMetric):
    """Recall@k: the share of a user's targets that is in the top k; with one target per user it equals HR@k."""

    def per_user(self, ranks: UserRanks, k: int) -> Values:
        return within(ranks, k).astype(np.float64)
