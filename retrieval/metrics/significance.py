"""Tests of a difference: paired over users (Student's t, Wilcoxon), unpaired over seeds (Welch); Holm's correction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import UserError
from retrieval.metrics.base import Values

#: of a difference of metrics; the others are rounding, as in means over seeds that are summed in another order
DECIMALS = 12


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
    n = require_pairs(a, b)
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


def require_pairs(a: Values, b: Values) -> int:
    """The number of users. Raises UserError if the runs differ in it, or it is below 2."""
    if a.shape != b.shape:
        raise UserError(
            f"the runs cannot be paired: one has {a.size:,} users, the other {b.size:,}; "
            "compare runs that were evaluated on the same dataset and split"
        )
    if a.size < 2:
        raise UserError(f"a test over users needs at least 2 users, there are {a.size}; evaluate on more users")
    return int(a.size)


@dataclass(frozen=True)
class SignedRankTest:
    """Wilcoxon's two-sided test. statistic: the smaller sum of ranks. differing: users with any difference."""

    statistic: float
    p: float
    differing: int


def signed_rank_test(a: Values, b: Values) -> SignedRankTest:
    """Test whether the differences of users lie around zero, by their ranks and not by their size.

    a, b: (n,) as for `paired_t_test`. Users without a difference are left out (most: both runs miss their targets); if
    there is no other, p = 1. Few differences are enumerated, many take the normal approximation with its correction
    for ties; for HR@k, whose differences are all 1 or -1, that is McNemar's test without its continuity correction.
    Source: Wilcoxon 1945. Raises UserError as `paired_t_test`.
    """
    require_pairs(a, b)
    differences = np.round(a - b, DECIMALS)  # those that are equal but for rounding share a rank
    differences = differences[differences != 0]
    if not differences.size:
        return SignedRankTest(0.0, 1.0, 0)
    from scipy import stats

    result = stats.wilcoxon(differences)
    return SignedRankTest(float(result.statistic), float(result.pvalue), int(differences.size))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order; they bound the chance of any false one among them.

    Holds for tests that depend on each other, as those against one system do. Source: Holm 1979 (step-down).
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


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
    The seeds are not paired: one seed gives two systems the same order of rows, but other weights and other dropout,
    and pairs without correlation only halve the degrees of freedom. None where the seeds of neither system differ,
    since there is nothing to compare the difference with.
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
