"""M3BSR learns the synthetic world, and learns from likes which of the clicks were accidents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.learning import make_world, train

SMALL = ["model.hidden=32", "model.inner=64", "model.heads=2", "model.layers=1"]
SETTINGS = [*SMALL, "train.epochs=2", "train.learning_rate=0.008"]
#: two of five clicks are accidents; half of the other clicks have a like, and almost no accident has one
LIKES: dict[str, Any] = {"behaviours": True, "accident": 0.4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("m3bsr") / "data", items=250, **LIKES)


@pytest.fixture(scope="module")
def told(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of M3BSR, which sees the likes."""
    return train(world, tmp_path_factory.mktemp("runs") / "told", "m3bsr", *SETTINGS)


def test_it_beats_popularity(world: Path, told: dict[str, Any], tmp_path: Path) -> None:
    popularity = train(world, tmp_path / "popularity", "popularity")
    assert told["HR@10"] > 1.5 * popularity["HR@10"]


@pytest.mark.long
def test_deep_behaviour_helps_where_clicks_are_accidents(tmp_path: Path) -> None:
    """The same system with as many parameters, to which the most recent half of a history is the deep part."""
    world = make_world(tmp_path / "world", **LIKES)
    told = train(world, tmp_path / "told", "m3bsr", *SETTINGS, "train.epochs=6")
    untold = train(world, tmp_path / "untold", "m3bsr", *SETTINGS, "train.epochs=6", "model.use_behaviours=false")
    print(f"found: HR@10 {told['HR@10']:.4f} with behaviours, {untold['HR@10']:.4f} without")
    assert told["HR@10"] > untold["HR@10"] + 0.01
    assert told["NDCG@10"] > untold["NDCG@10"]


def test_every_way_of_evaluating_is_reported(told: dict[str, Any]) -> None:
    assert set(told["choices"]) == {"estimate", "chain", "none"}


def test_one_behaviour_is_learned_from_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path / "data", users=600)
    popularity = train(world, tmp_path / "popularity", "popularity")
    report = train(world, tmp_path / "run", "m3bsr", *SETTINGS, "train.batch_size=128")
    assert "M3BSR (single-behaviour): this dataset has one behaviour" in capsys.readouterr().out
    assert report["HR@10"] > 1.5 * popularity["HR@10"]
