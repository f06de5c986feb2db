"""The paired t-test between two runs over users, and Welch's t-test between two systems over seeds."""

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


@dataclass(frozen=True)
class SeedTest:
    """Welch's two-sided t-test of mean(a) - mean(b) over seeds, with the confidence interval of the difference."""

    mean_difference: float
    t: float
    p: float
    low: float
    high: float


def welch_t_test(a: Values, b: Values, confidence: float = 0.95) -> SeedTest | None:
    """Test whether two systems differ in a metric by more than their seeds do.

    a, b: (n,) the metric of each seed. A system in which nothing is random may have one value, which counts as exact.
    The seeds are not paired: those of different systems have nothing in common. None where the seeds of neither system
    differ, since there is nothing to compare the difference with.
    Source: Welch 1947; degrees of freedom of Satterthwaite 1946.
    """
    variances = [float(np.var(each, ddof=1)) / each.size if np.ptp(each) > 0 else 0.0 for each in (a, b)]
    if sum(variances) == 0:
        return None
    from scipy import stats

    freedom = sum(variances) ** 2 / sum(
        variance**2 / (each.size - 1) for variance, each in zip(variances, (a, b), strict=True) if each.size > 1
    )
    difference, error = float(np.mean(a) - np.mean(b)), sum(variances) ** 0.5
    margin = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return SeedTest(difference, difference / error, p, difference - margin, difference + margin)
