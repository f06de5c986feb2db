"""The paired t-test between two runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from models.errors import UserError
from retrieval.metrics.base import Values


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
    Raises UserError if the runs do not have the same number of users, or have fewer than 2.
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
    from scipy import stats  # imported here: it takes most of a second, and few importers of this module run a test

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
