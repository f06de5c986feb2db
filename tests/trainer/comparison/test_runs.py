"""Finished runs: the metrics that they were evaluated with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval.metrics.base import RankMetric, UserRanks, Values
from retrieval.metrics.registry import DEFAULT, METRICS, MetricChoice
from tests.helpers.finished_runs import write_run
from trainer.comparison.runs import evaluated_with, read_runs


class First(RankMetric):
    """Whether the target is first, in a list of any length."""

    def per_user(self, ranks: UserRanks, k: int) -> Values:
        return ((ranks == 1) & (k > 0)).astype(np.float64)


@pytest.fixture
def _registered() -> Iterator[None]:
    METRICS.register("First", First())
    yield
    METRICS.unregister("First")


@pytest.mark.usefixtures("_registered")
def test_metrics_of_ranks_of_any_run_count_also_those_of_a_user(tmp_path: Path) -> None:
    own = write_run(tmp_path / "own", "sasrec", "eval.metrics=[First,Coverage]", "eval.ks=[20,5]")
    usual = write_run(tmp_path / "usual", "tedrec")
    assert evaluated_with(read_runs([own])) == MetricChoice(("First",), (5, 20))
    assert evaluated_with(read_runs([own, usual])) == MetricChoice(("First", "HR", "NDCG"), (5, 10, 20))


def test_runs_with_metrics_of_lists_alone_have_the_default_ones(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "lists", "sasrec", "eval.metrics=[Coverage]", "eval.ks=[5]")
    assert evaluated_with(read_runs([folder])) == MetricChoice(DEFAULT.names, (5,))
