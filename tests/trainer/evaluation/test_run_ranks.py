"""Ranks that are read back: damaged, incomplete and foreign files are refused by name, with the command that helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import UserError
from tests.helpers.finished_runs import COLD, MASKED, RANKS, figures, write_run
from trainer.comparison.runs import read_runs
from trainer.evaluation.run_ranks import read_ranks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": np.arange(8) + 99}, "different test targets"),
        ({"user": np.arange(8) + 1}, "different test users"),
        ({"cold": ~np.array(COLD)}, r"different test training rows \(cold targets\)"),
        ({"rank": None}, "rank"),
        ({"cold": np.arange(8)}, "expected integers"),
        ({"target": np.arange(7)}, "of one length"),
        ({"user": np.zeros(8, int)}, "each user once"),
        ({"rank_masked": np.array([-1] * 8)}, "no rank below 0"),
        ({"user": np.array([object()] * 8)}, "cannot be read"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    arrays = dict(np.load(folders[1] / "ranks-test.npz")) | changes
    np.savez(folders[1] / "ranks-test.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(UserError, match=message):
        read_runs(folders)


def test_runs_on_different_data_are_listed_by_dataset(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    folders.append(write_run(tmp_path / "c", "sasrec", "data.path=data/mine", user=np.arange(8) + 1))
    told = r"different test users(.|\n)*a, b \(data/demo, 8 test users\)\n  c \(data/mine"
    with pytest.raises(UserError, match=told):
        read_runs(folders)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no ranks": lambda run: (run / "ranks-test.npz").unlink(),
    "torn ranks": lambda run: cut(run / "ranks-test.npz"),
    "empty ranks": lambda run: (run / "ranks-test.npz").write_bytes(b""),
    "single array": lambda run: np.save((run / "ranks-test.npz").open("wb"), np.arange(3)),
    "pickle": lambda run: (run / "ranks-test.npz").write_bytes(b"\x80\x04K\x01."),
    "no report": lambda run: (run / "test.json").unlink(),
    "torn report": lambda run: cut(run / "test.json"),
    "list": lambda run: (run / "test.json").write_text("[1]"),
    "no HR": lambda run: (run / "test.json").write_text('{"NDCG@10": 0.1}'),
    "report of another test": lambda run: (run / "test.json").write_text(json.dumps(figures([*RANKS[:-1], 11]))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_run_that_was_not_tested_whole_is_refused_by_file(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    run = write_run(tmp_path / "a")
    damage(run)
    with pytest.raises(UserError, match=rf"(ranks-test\.npz|test\.json).*train --recipe {run}/config.yaml --name a .*"):
        read_ranks(run)


@pytest.mark.parametrize(
    "report",
    [
        figures(MASKED),
        {"MRR@3": (1 + 1 / 2 + 1 / 3) / 8, "Coverage@3": 0.5, "OfAnother@3": 9.0},  # checked against the ranks
        {"Coverage@3": 0.5},  # this does not follow from ranks
    ],
)
def test_a_report_of_other_metrics_fits(tmp_path: Path, report: dict[str, float]) -> None:
    run = write_run(tmp_path / "a")
    (run / "test.json").write_text(json.dumps(report))
    assert read_ranks(run).rank.tolist() == RANKS


def test_a_run_without_its_configuration_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml does not exist.*copy it from where the run was trained"):
        read_runs([run])
