"""Mean and standard deviation of vectors that come block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: a dimension that deviates less than this does not vary
_LEAST_DEVIATION = 1e-6


class MeanAndDeviation:
    """Mean and standard deviation per dimension over all vectors added so far, in float64.

    Blocks are merged by Chan, Golub and LeVeque (1979): the difference of two large sums of squares would lose all
    digits for vectors far from zero. Shapes: N vectors of a block, V width.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean_V = np.zeros(width)
        self._squares_V = np.zeros(width)

    def add(self, x_NV: NDArray[np.float64]) -> None:
        """Count the vectors of a block, which may be empty."""
        if not len(x_NV):
            return
        mean_V = x_NV.mean(axis=0)
        step_V = mean_V - self.mean_V
        total = self.count + len(x_NV)
        self._squares_V += ((x_NV - mean_V) ** 2).sum(axis=0) + step_V**2 * self.count * len(x_NV) / total
        self.mean_V += step_V * len(x_NV) / total
        self.count = total

    @property
    def variance_V(self) -> NDArray[np.float64]:
        """(V,) variance (divisor N)."""
        return self._squares_V / max(self.count, 1)

    @property
    def deviation_V(self) -> NDArray[np.float64]:
        """(V,) standard deviation (divisor N), but 1 in a dimension that does not vary: scaling leaves it as it is."""
        std_V = np.sqrt(self.variance_V)
        return np.asarray(np.where(std_V > _LEAST_DEVIATION, std_V, 1.0))
