"""The two kinds of metric: from the rank of each user's target, or from the lists that all users are shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: rank of each user's target, (U,), 1-based; 0 means not found within the searched depth
UserRanks = NDArray[np.integer[Any]]
Values = NDArray[np.float64]


class RankMetric(ABC):
    """A metric of the rank of a user's one target. It has a value for each user, so a paired test can compare runs.

    Higher is better, and a later rank is never worth more than an earlier one.
    """

    @abstractmethod
    def per_user(self, ranks: UserRanks, k: int) -> Values:
        """(U,) float64, the metric of each user in the top k. ranks: (U,) as UserRanks."""

    def best_possible(self, shares: Values, k: int) -> float | None:
        """The expected mean of the ideal ranking; None if `shares` ends before rank k.

        shares: (depth,) float64, expected share of targets at ranks 1, 2, ... of that ranking.
        """
        if k > len(shares):
            return None
        values = self.per_user(np.arange(len(shares) + 1), k)
        return float(values[1:] @ shares + values[0] * (1 - shares.sum()))


@dataclass(frozen=True)
class Exposure:
    """How often items are shown in the top-k lists of `users` users.

    shown: (I,) int64, number of lists that hold each item row. trained: (I,) int64, number of training interactions of
    each item row. Row 0 is padding, and 0 in both. Both are sums over users, so they depend neither on the order of
    the users nor on the batches.
    """

    k: int
    users: int
    shown: NDArray[np.int64]
    trained: NDArray[np.int64]


class ListMetric(ABC):
    """A metric of the lists of all users together. It has no value per user, so no paired test is possible."""

    @abstractmethod
    def value(self, exposure: Exposure) -> float:
        """The metric of the lists."""


Metric = RankMetric | ListMetric
