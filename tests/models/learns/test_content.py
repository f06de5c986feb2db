"""MoRec, IISAN and IISAN-Versa learn the synthetic world, and rank items that are not in the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.learning import make_world, train

SETTINGS = {
    "morec": ["model.hidden=64"],
    "iisan": ["model.hidden=64"],
    "iisan-versa": ["model.hidden=64", "model.visual_adapter=64"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the catalogue appears only after training; both encoders have four states of one width."""
    return make_world(tmp_path_factory.mktemp("content") / "data", items=250, cold=0.2, layers=4, text_width=16)


@pytest.fixture(scope="module")
def by_ids(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of popularity, and of a system that represents items by ids."""
    runs = tmp_path_factory.mktemp("by-ids")
    return {model: train(world, runs / model, model, "train.epochs=3") for model in ("popularity", "sasrec")}


@pytest.mark.parametrize("system", SETTINGS)
def test_items_that_nobody_has_seen_are_ranked_by_their_content(
    system: str, world: Path, by_ids: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    report = train(world, tmp_path / system, system, "train.epochs=3", *SETTINGS[system])
    assert report["cold"]["users"] > 200
    assert report["HR@10"] > 1.5 * by_ids["popularity"]["HR@10"]
    for other in by_ids.values():
        assert report["cold"]["HR@10"] > other["cold"]["HR@10"] + 0.1
    # for items in the training data ids work better, but not by much
    assert report["warm"]["HR@10"] > 0.6 * by_ids["sasrec"]["warm"]["HR@10"]
