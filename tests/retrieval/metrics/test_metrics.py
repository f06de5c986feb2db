"""HR, NDCG and the paired t-test against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.errors import UserError
from retrieval.metrics.base import METRIC_KEYS, Group, mean_metrics, paired_t_test, per_user, warm_cold


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_metrics_equal_their_definition(ranks: list[int]) -> None:
    values = per_user(np.array(ranks, dtype=np.int64))
    assert tuple(values) == METRIC_KEYS == ("HR@10", "NDCG@10", "HR@20", "NDCG@20")
    for k in (10, 20):
        for i, rank in enumerate(ranks):
            found = 0 < rank <= k
            assert values[f"HR@{k}"][i] == (1.0 if found else 0.0)
            assert values[f"NDCG@{k}"][i] == pytest.approx(1 / math.log2(rank + 1) if found else 0.0, rel=1e-15)
    means = mean_metrics(np.array(ranks, dtype=np.int64))
    assert tuple(means) == METRIC_KEYS
    assert means["HR@10"] == pytest.approx(sum(0 < r <= 10 for r in ranks) / len(ranks))


def test_ranks_at_the_cut_offs() -> None:
    values = per_user(np.array([0, 1, 10, 11, 20, 21]))
    assert values["HR@10"].tolist() == [0, 1, 1, 0, 0, 0]
    assert values["HR@20"].tolist() == [0, 1, 1, 1, 1, 0]
    assert values["NDCG@20"][1] == 1.0


def test_no_user_has_no_metric_and_negative_ranks_are_a_bug() -> None:
    assert mean_metrics(np.array([], dtype=np.int64)) == {}
    with pytest.raises(ValueError, match="1-based"):
        per_user(np.array([1, -1]))


def test_warm_and_cold_targets_are_counted_apart() -> None:
    split = warm_cold(np.array([1, 0, 15]), np.array([False, True, False]))
    assert (split.warm.count, split.cold.count) == (2, 1)
    assert split.warm.metrics["HR@10"] == 0.5
    assert split.cold.metrics["HR@20"] == 0.0
    assert warm_cold(np.array([1]), np.array([False])).cold == Group(0, {})
    with pytest.raises(ValueError, match="cold flags"):
        warm_cold(np.array([1, 2]), np.array([True]))


def test_paired_t_test_equals_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    test = paired_t_test(a, b)
    difference = a - b
    error = difference.std(ddof=1) / math.sqrt(50)
    assert test.t == pytest.approx(difference.mean() / error)
    assert test.p == pytest.approx(2 * stats.t.sf(abs(test.t), 49))
    half = stats.t.ppf(0.975, 49) * error
    assert (test.low, test.high) == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert test.n == 50
    assert test.mean_difference == pytest.approx(difference.mean())


def test_equal_runs_do_not_differ_and_a_constant_difference_does() -> None:
    same = paired_t_test(np.ones(5), np.ones(5))
    assert (same.p, same.t, same.mean_difference, same.low, same.high) == (1.0, 0.0, 0.0, 0.0, 0.0)
    constant = paired_t_test(np.ones(5), np.zeros(5))
    assert constant.p == 0.0
    assert constant.mean_difference == 1.0


def test_runs_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(UserError, match="3 users, the other 2"):
        paired_t_test(np.ones(3), np.ones(2))
    with pytest.raises(UserError, match="at least 2"):
        paired_t_test(np.ones(1), np.zeros(1))
