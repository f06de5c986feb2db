"""The tests of a difference against their definitions."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from models.errors import UserError
from retrieval.metrics.significance import holm, paired_t_test, signed_rank_test, welch_t_test
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
    with pytest.raises(UserError, match="3 users, the other 2"):
        signed_rank_test(np.ones(3), np.ones(2))


def test_signed_ranks_of_few_users_equal_the_enumeration_of_all_signs() -> None:
    a = np.array([0.5, 1.0, 0.0, 0.3, 0.9, 0.0, 0.2, 0.7, 0.4])
    b = np.array([0.1, 0.2, 0.0, 0.5, 0.1, 0.4, 0.4, 0.3, 0.3])
    differences = (a - b)[a != b]
    ranks = stats.rankdata(np.abs(differences).round(9))
    assert len(set(ranks)) < len(ranks), "there are ties"
    middle = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - middle)
    sums = [ranks @ signs for signs in itertools.product((0, 1), repeat=len(ranks))]
    test = signed_rank_test(a, b)
    assert test.p == pytest.approx(np.mean(np.abs(np.array(sums) - middle) >= observed - 1e-9))
    assert test.statistic == pytest.approx(middle - observed)
    assert test.differing == 8


def test_signed_ranks_of_many_users_equal_the_normal_approximation_with_ties() -> None:
    rng = np.random.default_rng(2)
    a, b = (np.where(rng.random(900) < 0.4, 1 / np.log2(rng.integers(1, 11, 900) + 1), 0) for _ in range(2))
    differences = (a - b)[a != b]
    ranks, n = stats.rankdata(np.abs(differences).round(9)), differences.size
    ties = np.unique(ranks, return_counts=True)[1]
    variance = n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48
    z = (ranks[differences > 0].sum() - n * (n + 1) / 4) / math.sqrt(variance)
    assert signed_rank_test(a, b).p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_signed_ranks_of_hits_are_mcnemar_and_ignore_rounding() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.random((2, 500)) < [[0.5], [0.4]]).astype(np.float64)
    won, lost = int((a > b).sum()), int((a < b).sum())
    test = signed_rank_test(a, b)
    assert test.p == pytest.approx(stats.chi2.sf((won - lost) ** 2 / (won + lost), 1))
    assert test.differing == won + lost
    noise = rng.choice([-1e-16, 0, 1e-16], 500)
    assert signed_rank_test(a + noise, b) == test
    assert (signed_rank_test(a, a).p, signed_rank_test(a, a).differing) == (1.0, 0)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(4)
    for p in ([], [0.2], [0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.02, 0.02], list(rng.random(20) ** 3)):
        corrected = holm(p)
        assert len(corrected) == len(p)
        for alpha in (0.001, 0.01, 0.0401, 0.05, 0.3, 0.99):
            rejected = set()
            for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
                if p[place] > alpha / (len(p) - step):
                    break
                rejected.add(place)
            assert {place for place, value in enumerate(corrected) if value <= alpha} == rejected
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert max(holm([0.4, 0.9])) <= 1


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
    names = ("base", "ranks", "lists", "registry", "summary", "significance", "effects")
    code = f"import sys, {', '.join(f'retrieval.metrics.{name}' for name in names)}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
