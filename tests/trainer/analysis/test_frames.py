"""Frames of MealRec: their change and influence; and the map of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.mealrec.model import MealRec
from tests.helpers.tiny_runs import make_dataset
from tests.helpers.untrained import opened
from trainer.analysis.cases import Names
from trainer.analysis.embedding import FOCUS, embedding
from trainer.analysis.frames import _truth, frames
from trainer.batches.loader import Loaded

Opened = tuple[Loaded, MealRec]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "demo")


def mealrec(data: Path, *settings: str) -> Opened:
    """MealRec with random parameters everywhere, also in the layers that start at zero."""
    loaded, model = opened(data, "mealrec", *settings)
    assert isinstance(model, MealRec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3, generator=generator)
    return loaded, model


@pytest.mark.parametrize("settings", [(), ("model.use_tcd=false",), ("model.use_npd=false",)])
def test_parts_of_the_user_vector_are_those_of_the_whole(data: Path, settings: tuple[str, ...]) -> None:
    loaded, model = mealrec(data, *settings)
    (batch,) = loaded.evaluation_batches("test", np.arange(9), 9)
    for way in model.inference_choices:
        model.inference = way
        whole = model.user_vectors(batch)
        assert torch.equal(whole, model.user_vectors_with(batch, model.last_sequence(batch)))
        before, after = model.refined(batch)
        assert torch.equal(before, after) == (not model.options.use_tcd)


def test_only_a_frame_that_is_read_has_influence(data: Path) -> None:
    loaded, model = mealrec(data, "model.use_tcd=false")
    users, names = np.arange(20), Names(loaded.dataset)
    assert min(frames(model, loaded, users, names).influence) > 1e-6
    with torch.no_grad():
        model.preference.visual.weight.zero_()
    found = frames(model, loaded, users, names)
    assert max(map(abs, found.influence)) < 1e-6
    assert found.change == ()  # there is no TCD


def test_frames_tell_what_was_planted(data: Path) -> None:
    loaded, model = mealrec(data)
    found = frames(model, loaded, np.arange(20), Names(loaded.dataset))
    assert (len(found.change), len(found.influence), found.kind) == (3, 3, "frames")
    assert set(found.truth) == {"change", "influence"}
    planted = np.load(data / "truth/frame_on_topic.npy")
    last = loaded.dataset.items[loaded.dataset.offsets[1] - 2]
    assert found.examples[0].on_topic == tuple(planted[last].tolist())


def test_separation_counts_pairs_within_an_item() -> None:
    values = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]])
    on_topic = np.array([[True, False, True], [True, False, False]])
    found = _truth(values, on_topic)
    assert found.on == pytest.approx((3 + 2 + 1) / 3)
    assert found.off == pytest.approx((1 + 1 + 5) / 3)
    assert found.separation == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_the_map_holds_users_targets_and_frames_and_is_repeatable(data: Path) -> None:
    loaded, model = mealrec(data)
    names = Names(loaded.dataset)
    found = embedding(model, loaded, np.arange(30), names, seed=1)
    kinds = [point.kind for point in found.points]
    assert [kinds.count(kind) for kind in ("user", "target", "frame")] == [30, 30, 3 * FOCUS]
    assert sorted({point.focus for point in found.points}) == list(range(-1, FOCUS))
    target = loaded.dataset.items[loaded.dataset.offsets[1] - 1]
    assert next(point for point in found.points if point.kind == "target").title == names.item(int(target))
    assert found == embedding(model, loaded, np.arange(30), names, seed=1)
    assert all(np.isfinite([point.x, point.y]).all() for point in found.points)


def test_distance_is_below_one_where_users_lie_at_their_targets(data: Path) -> None:
    loaded, model = opened(data, "sasrec")
    names = Names(loaded.dataset)
    items = model.item_vectors()  # type: ignore[union-attr]
    model.user_vectors = lambda batch: items[batch.target]  # type: ignore[union-attr, method-assign]
    assert embedding(model, loaded, np.arange(20), names, seed=0).distance < 0.01  # type: ignore[arg-type]
