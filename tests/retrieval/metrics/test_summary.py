"""Metrics over many users: each against its definition, means, and separate values for warm and cold targets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.metrics.base import Exposure
from retrieval.metrics.registry import DEFAULT, MetricChoice
from retrieval.metrics.summary import TargetGroup, best_possible, list_values, mean_metrics, per_user, warm_cold

ALL = MetricChoice(("HR", "NDCG", "MRR", "Recall", "Coverage"), (1, 10, 20, 33))


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_metrics_equal_their_definition(ranks: list[int]) -> None:
    values = per_user(np.array(ranks, dtype=np.int64), ALL)
    assert list(values) == [f"{name}@{k}" for k in (1, 10, 20, 33) for name in ("HR", "NDCG", "MRR", "Recall")]
    for k in ALL.ks:
        for i, rank in enumerate(ranks):
            found = 0 < rank <= k
            assert values[f"HR@{k}"][i] == values[f"Recall@{k}"][i] == (1.0 if found else 0.0)
            assert values[f"NDCG@{k}"][i] == pytest.approx(1 / math.log2(rank + 1) if found else 0.0, rel=1e-15)
            assert values[f"MRR@{k}"][i] == (1 / rank if found else 0.0)
    means = mean_metrics(np.array(ranks, dtype=np.int64), ALL)
    assert means.keys() == values.keys()
    assert means["HR@10"] == pytest.approx(sum(0 < r <= 10 for r in ranks) / len(ranks))


def test_the_default_report() -> None:
    assert DEFAULT.keys == tuple(mean_metrics(np.array([3]))) == ("HR@10", "NDCG@10", "HR@20", "NDCG@20")


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
    assert warm_cold(np.array([1]), np.array([False])).cold == TargetGroup(0, {})
    with pytest.raises(ValueError, match="cold flags"):
        warm_cold(np.array([1, 2]), np.array([True]))


def test_best_possible_is_the_expectation_of_the_ideal_ranking() -> None:
    shares = [0.5, 0.25, 0.0, 0.125]  # one target in eight lies beyond rank 4
    assert best_possible("HR@1", shares) == 0.5
    assert best_possible("Recall@4", shares) == 0.875
    assert best_possible("MRR@4", shares) == 0.5 + 0.25 / 2 + 0.125 / 4
    assert best_possible("NDCG@2", shares) == pytest.approx(0.5 + 0.25 / math.log2(3))
    for unknown in ("HR@5", "Coverage@2", "Diversity@2", "HR", "HR@two", "HR@0", "users"):
        assert best_possible(unknown, shares) is None
    assert best_possible("HR@1", []) is None


def test_coverage_and_novelty_equal_their_definition() -> None:
    choice = MetricChoice(("HR", "Coverage", "Novelty"), (2, 3))
    trained = np.array([0, 4, 2, 1, 0, 1])  # eight interactions; item 4 was never seen
    two = Exposure(2, 3, np.array([0, 3, 0, 2, 1, 0]), trained)
    three = Exposure(3, 3, np.array([0, 3, 2, 2, 1, 1]), trained)
    values = list_values([two, three], choice)
    assert values == pytest.approx(
        {
            "Coverage@2": 3 / 5,
            "Novelty@2": (3 * math.log2(8 / 4) + 2 * math.log2(8 / 1) + 1 * math.log2(8 / 1)) / 6,
            "Coverage@3": 1.0,
            "Novelty@3": (3 * 1 + 2 * 2 + 2 * 3 + 3 + 3) / 9,
        }
    )
    nothing = Exposure(2, 3, np.zeros(6, np.int64), np.zeros(6, np.int64))
    assert list_values([nothing], choice) == {"Coverage@2": 0.0, "Novelty@2": 0.0}
