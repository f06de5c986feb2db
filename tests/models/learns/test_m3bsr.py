"""M3BSR learns the synthetic world, and learns from likes which of the clicks were accidents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.learning import make_world, train

SMALL = ["model.hidden=32", "model.inner=64", "model.heads=2", "model.layers=1"]
SETTINGS = [*SMALL, "train.epochs=6", "train.learning_rate=0.008"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of five clicks are accidents. Half of the other clicks have a like, and almost no accident has one."""
    return make_world(tmp_path_factory.mktemp("m3bsr") / "data", behaviours=True, accident=0.4)


@pytest.fixture(scope="module")
def reports(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    runs = tmp_path_factory.mktemp("runs")
    return {
        "popularity": train(world, runs / "popularity", "popularity"),
        "told": train(world, runs / "told", "m3bsr", *SETTINGS),
        "untold": train(world, runs / "untold", "m3bsr", *SETTINGS, "model.use_behaviours=false"),
    }


def test_it_beats_popularity(reports: dict[str, dict[str, Any]]) -> None:
    for name in ("told", "untold"):
        assert reports[name]["HR@10"] > 1.5 * reports["popularity"]["HR@10"]


def test_deep_behaviour_helps_where_clicks_are_accidents(reports: dict[str, dict[str, Any]]) -> None:
    """Without behaviours, the same system (with equally many parameters) uses the newer half of a history instead."""
    assert reports["told"]["HR@10"] > reports["untold"]["HR@10"] + 0.01
    assert reports["told"]["NDCG@10"] > reports["untold"]["NDCG@10"]


def test_every_way_of_evaluating_is_reported(reports: dict[str, dict[str, Any]]) -> None:
    assert set(reports["told"]["choices"]) == {"estimate", "chain", "none"}


def test_one_behaviour_is_learned_from_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path / "data")
    popularity = train(world, tmp_path / "popularity", "popularity")
    report = train(world, tmp_path / "run", "m3bsr", *SETTINGS, "train.epochs=2")
    assert "M3BSR (single-behaviour): this dataset has one behaviour" in capsys.readouterr().out
    assert report["HR@10"] > 1.5 * popularity["HR@10"]
