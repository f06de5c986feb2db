"""Which run is kept: by validation, over seeds, with a test of its lead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from retrieval.files import write_json
from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.summary import mean_metrics
from trainer.evaluation.choice import choose

KEYS = MetricChoice(("NDCG",), (10,))


def saved(folder: Path, valid: list[int], test: list[int] | None = None) -> Path:
    """A run folder with the ranks of four users."""
    folder.mkdir()
    for name, ranks in (("valid", valid), ("test", test or valid)):
        rank, users = np.array(ranks), np.arange(len(ranks))
        np.savez(folder / f"ranks-{name}.npz", user=users, target=users + 1, rank=rank, rank_masked=rank, cold=rank < 0)
        write_json(folder / f"{name}.json", mean_metrics(rank, KEYS))
    return folder


def test_validation_chooses_and_never_test(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", [1, 1, 2, 3], test=[9, 9, 9, 9])
    bad = saved(tmp_path / "bad", [9, 9, 9, 9], test=[1, 1, 1, 1])
    choice = choose({"bad": [bad], "good": [good]})
    assert [each.best_run for each in choice.standings] == ["good", "bad"]
    assert choice.standings[0].value == pytest.approx(np.mean([1, 1, 1 / np.log2(3), 1 / 2]))
    assert choice.standings[0].p is None, "the best one is not compared with itself"
    assert choice.standings[1].p is not None
    assert choice.standings[1].p < 0.05
    assert (choice.users, choice.seeds) == (4, 1)


def test_systems_are_compared_by_the_mean_over_seeds(tmp_path: Path) -> None:
    lucky = [saved(tmp_path / "lucky-s1", [1, 1, 1, 1]), saved(tmp_path / "lucky-s2", [99, 99, 99, 99])]
    steady = [saved(tmp_path / "steady-s1", [2, 2, 2, 2]), saved(tmp_path / "steady-s2", [2, 2, 2, 1])]
    choice = choose({"lucky": lucky, "steady": steady})
    assert [each.best_run for each in choice.standings] == ["steady-s2", "lucky-s1"]
    assert choice.standings[1].value == pytest.approx(0.5)
    assert choice.seeds == 2


def test_equal_systems_keep_their_order_and_one_has_no_test(tmp_path: Path) -> None:
    same = {name: [saved(tmp_path / name, [1, 5, 11, 0])] for name in ("first", "second")}
    assert [each.system for each in choose(same).standings] == ["first", "second"]
    assert [each.p for each in choose(same).standings] == [None, 1]
    assert [each.p for each in choose({"first": same["first"]}).standings] == [None]


def test_ranks_that_do_not_fit_their_report_are_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", [1, 2, 3, 4])
    write_json(run / "valid.json", {"NDCG@10": 0.9})
    with pytest.raises(UserError, match=r"valid\.json do not follow from ranks-valid\.npz"):
        choose({"run": [run]})
