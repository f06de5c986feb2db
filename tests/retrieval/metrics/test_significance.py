"""The paired t-test and Welch's test against their definitions."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from models.errors import UserError
from retrieval.metrics.significance import paired_t_test, welch_t_test
from tests.helpers.paths import ROOT


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


def test_welch_equals_scipy_for_any_number_of_seeds() -> None:
    rng = np.random.default_rng(1)
    for sizes in ((2, 2), (2, 5), (4, 3)):
        a, b = (rng.normal(0.1, 0.01, size) for size in sizes)
        test = welch_t_test(a, b)
        expected = stats.ttest_ind(a, b, equal_var=False)
        interval = expected.confidence_interval(0.95)
        assert test is not None
        assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
        assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
        assert test.mean_difference == pytest.approx(a.mean() - b.mean())


def test_an_exact_value_makes_it_a_test_of_one_sample() -> None:
    seeds = np.array([0.3, 0.5, 0.1, 0.4])
    test = welch_t_test(seeds, np.array([0.2]))
    expected = stats.ttest_1samp(seeds, 0.2)
    assert test is not None
    assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_without_any_spread_there_is_no_test_over_seeds() -> None:
    assert welch_t_test(np.array([0.1, 0.1, 0.1]), np.array([0.2])) is None


def test_importing_the_metrics_does_not_import_scipy() -> None:
    names = ("base", "ranks", "lists", "registry", "summary", "significance")
    code = f"import sys, {', '.join(f'retrieval.metrics.{name}' for name in names)}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
