"""Effect sizes against their definitions, and their bootstrap intervals against an enumeration and against scipy."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from models.errors import UserError
from retrieval.metrics.effects import RESAMPLES, effect_sizes


def test_the_values_are_the_textbook_ones() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    sizes = effect_sizes(a, b)
    difference = a - b
    assert sizes.d_z.value == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert sizes.relative.value == pytest.approx((a.mean() - b.mean()) / b.mean())


def test_the_interval_is_that_of_all_resamples() -> None:
    """Of four users there are 4^4 resamples; 2000 drawn ones have the same quantiles, where these are not on a jump."""
    a, b = np.array([1.0, 0.6, 0.4, 0.3]), np.array([0.5, 0.8, 0.1, 0.2])
    every = [(a[list(each)], b[list(each)]) for each in itertools.product(range(4), repeat=4)]
    relative = np.sort([x.mean() / y.mean() - 1 for x, y in every])
    effect = effect_sizes(a, b).relative
    for value, tail in ((effect.low, 0.025), (effect.high, 0.975)):
        near = np.quantile(relative, [tail - 0.01, tail + 0.01], method="inverted_cdf")
        assert near[0] - 1e-12 <= value <= near[1] + 1e-12
        assert np.abs(relative - value).min() < 1e-12, "it is one of the resamples"


def test_the_intervals_agree_with_scipy() -> None:
    rng = np.random.default_rng(1)
    found = rng.random((2, 400)) < [[0.3], [0.2]]
    a, b = np.where(found, 1 / np.log2(rng.integers(1, 11, (2, 400)) + 1), 0)
    statistics = {
        "relative": lambda x, y, axis: x.mean(axis) / y.mean(axis) - 1,
        "d_z": lambda x, y, axis: (x - y).mean(axis) / (x - y).std(axis, ddof=1),
    }
    for name, statistic in statistics.items():
        expected = stats.bootstrap(
            (a, b), statistic, paired=True, method="percentile", n_resamples=RESAMPLES, rng=np.random.default_rng(2)
        ).confidence_interval
        effect = getattr(effect_sizes(a, b), name)
        width = expected.high - expected.low
        assert abs(effect.low - expected.low) < 0.1 * width
        assert abs(effect.high - expected.high) < 0.1 * width
        assert effect.low < effect.value < effect.high


def test_the_same_users_in_another_order_give_the_same() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.random((2, 300)) < 0.2).astype(np.float64)
    order = rng.permutation(300)
    again = effect_sizes(a[order], b[order])
    for one, two in zip(vars(effect_sizes(a, b)).values(), vars(again).values(), strict=True):
        assert list(vars(one).values()) == pytest.approx(list(vars(two).values()))


def test_what_divides_by_zero_is_not_hidden() -> None:
    same = effect_sizes(np.ones(5), np.ones(5))
    assert {*vars(same.relative).values(), *vars(same.d_z).values()} == {0.0}
    more = effect_sizes(np.ones(5), np.zeros(5))
    assert {*vars(more.relative).values(), *vars(more.d_z).values()} == {math.inf}
    less = effect_sizes(np.full(5, 0.1), np.full(5, 0.4))  # a constant difference, but for rounding
    assert less.relative.value == pytest.approx(-0.75)
    assert {*vars(less.d_z).values()} == {-math.inf}
    for value in (0.1, 0.3, 0.7, 1 / math.log2(3)):  # 8 of 27 resamples lack the third user, and so have no deviation
        few = effect_sizes(np.array([value, value, 0.0]), np.zeros(3)).d_z
        assert (few.low, few.high) == (0.0, math.inf)
    with pytest.raises(UserError, match="3 users, the other 2"):
        effect_sizes(np.ones(3), np.ones(2))


def test_memory_is_bounded_also_where_all_users_differ() -> None:
    """20,000 pairs of values in 400 resamples would be 64 MB of counts, and their products as much again."""
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 20_000))
    tracemalloc.start()
    effect_sizes(a, b, resamples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
