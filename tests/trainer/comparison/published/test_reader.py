"""The paper's tables as data: complete, numbers, named as here; their own arithmetic, and where it does not hold."""

from __future__ import annotations

import math

import pytest

from models.errors import UserError
from models.systems import SYSTEMS
from retrieval.metrics.registry import parse_key
from trainer.comparison.published.reader import datasets, published

BASELINES = 10
#: half of the last printed digit, of both figures of a difference
ROUNDING = 1e-4


def test_every_cell_is_a_number_of_a_system_that_is_here() -> None:
    for name in datasets():
        table = published(2, name)
        assert len({row.system for row in table.rows}) == len(table.rows) == BASELINES + 1
        assert table.metrics == ("HR@10", "NDCG@10", "HR@20", "NDCG@20")
        for row in table.rows:
            assert row.system in SYSTEMS
            assert set(row.figures) == set(table.metrics)
            assert all(isinstance(value, float) and 0.004 < value < 0.13 for value in row.figures.values()), row
    assert all(parse_key(metric) for metric in published(2, "microlens-small").metrics)


def test_figures_are_where_the_paper_has_them() -> None:
    """One cell of each corner, and of each dataset."""
    for dataset, system, metric, value in (
        ("microlens-small", "sasrec", "HR@10", 0.0781), ("microlens-big", "diqdiff", "NDCG@20", 0.0492),
        ("shortvideo-small", "iisan", "HR@10", 0.0154), ("shortvideo-big", "mealrec", "NDCG@20", 0.0136),
    ):  # fmt: skip
        assert published(2, dataset)[system].figures[metric] == value
    costs = published(3, "microlens-big")["iisan-versa"].figures
    assert costs == {"HR@20": 0.1114, "train_seconds": 2493.07, "evaluation_seconds": 107.4, "memory_mb": 41336}
    with pytest.raises(UserError, match="Table 3 has no dataset 'shortvideo-big'"):
        published(3, "shortvideo-big")
    with pytest.raises(UserError, match="'microlens-smal': did you mean 'microlens-small'"):
        published(2, "microlens-smal")
    with pytest.raises(UserError, match="Table 4 of the paper is not kept"):
        published(4, "microlens-small")
    with pytest.raises(UserError, match="no 'tedrecs': did you mean 'tedrec'"):
        published(3, "microlens-small")["tedrecs"]


def test_relative_improvements_follow_from_the_figures() -> None:
    """All 16 of the paper's do, so no cell of its best rows was copied wrongly."""
    for name in datasets():
        table = published(2, name)
        for metric, gain in table.gains.items():
            other = max(row.figures[metric] for row in table.rows if row.system != "mealrec")
            assert 100 * (table["mealrec"].figures[metric] / other - 1) == pytest.approx(gain, abs=0.006)


def test_asterisks_are_those_of_the_smaller_leads() -> None:
    lacking = {
        (name, metric)
        for name in datasets()
        for metric in set(published(2, name).metrics) - published(2, name)["mealrec"].starred
    }
    assert lacking == {("microlens-big", "HR@10"), ("shortvideo-small", "NDCG@10")}
    assert not any(row.starred for name in datasets() for row in published(2, name).rows if row.system != "mealrec")


def test_no_figure_is_impossible_beside_the_others_but_the_one_that_is_noted() -> None:
    """A target at rank r adds 1 / log2(r + 1) to NDCG: bounds for ranks 1 to 10, and for 11 to 20."""
    impossible = set()
    for name in datasets():
        for row in published(2, name).rows:
            hits, gain, hits20, gain20 = row.figures.values()
            assert hits / math.log2(11) - ROUNDING <= gain <= hits + ROUNDING
            least, most = ((hits20 - hits) / math.log2(rank + 1) for rank in (20, 11))
            if not least - ROUNDING <= gain20 - gain <= most + ROUNDING:
                impossible.add((name, row.system))
    assert impossible == {("microlens-small", "iisan-versa")}
    assert "I8" in {each.name for each in published(2, "microlens-small").contradictions}


def test_tables_2_and_3_agree_but_for_the_cell_that_is_noted() -> None:
    differing = {
        (name, row.system)
        for name in ("microlens-small", "microlens-big")
        for row in published(3, name).rows
        if row.figures["HR@20"] != published(2, name)[row.system].figures["HR@20"]
    }
    assert differing == {("microlens-big", "tedrec")}
    assert "I2" in {each.name for each in published(3, "microlens-big").contradictions}
    assert "I2" not in {each.name for each in published(3, "microlens-small").contradictions}
    named = {each.name for table in (2, 3) for each in published(table, "microlens-big").contradictions}
    assert named | {each.name for each in published(2, "shortvideo-small").contradictions} >= {
        f"I{n}" for n in range(1, 7)
    }
