"""Indices in shards: the same answers as one index, on the disk and in memory, and damage that is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from retrieval.index.build import build_index, recall_against_exact
from retrieval.index.shards import cuts, load, merged, save_shards
from tests.helpers.clustered import clustered

CHECKSUM = "a" * 64
flat = partial(build_index, kind="flat", checksum=CHECKSUM, device="cpu", threads=1)


@pytest.mark.parametrize("shards", [1, 3, 499])
def test_flat_shards_find_what_one_flat_index_finds(tmp_path: Path, shards: int) -> None:
    items, users = clustered(500), clustered(40, seed=1)[1:]
    records = save_shards(tmp_path / "flat", items, shards, flat)
    assert [record.count for record in records] == [part.stop - part.start for part in cuts(499, shards)]
    index, whole = load(tmp_path / "flat", CHECKSUM, items, device="cpu"), flat(items)
    assert (index.kind, index.limit) == ("flat", 499)
    for k in (1, 20, 499):
        scores, ids = index.search(users, k)
        exact_scores, exact_ids = whole.search(users, k)
        np.testing.assert_allclose(scores, exact_scores, rtol=1e-5, atol=1e-5)
        assert (ids == exact_ids).mean() > 0.99, "near-equal scores may change places"
        assert all(len({*row}) == k for row in ids.tolist())
    with pytest.raises(UserError, match="can return 1 to 499 items, not 500"):
        index.search(users, 500)


def test_shards_of_an_approximate_index_find_the_recall_together(tmp_path: Path) -> None:
    items, users = clustered(), clustered(300, seed=2)[1:]
    build = partial(flat, kind="ivfpq", queries=clustered(200, seed=9)[1:])
    for record in save_shards(tmp_path / "ivfpq", items, 3, build):
        assert record.tuned is not None
        assert record.tuned.enough
    index = load(tmp_path / "ivfpq", CHECKSUM, items, device="cpu")
    assert recall_against_exact(index, users, items, 20) > 0.98
    assert index.description.startswith("3 shards: ivfpq nlist=")


def test_what_few_find_ends_with_padding() -> None:
    one = np.array([[5.0, -np.inf], [2.0, 1.0]], np.float32), np.array([[3, 0], [1, 2]])
    other = np.array([[5.0], [9.0]], np.float32), np.array([[8], [7]])
    scores, ids = merged([one, other], 4)
    assert ids.tolist() == [[3, 8, 0, 0], [7, 1, 2, 0]]
    assert scores.tolist() == [[5, 5, -np.inf, -np.inf], [9, 2, 1, -np.inf]]


def test_shards_of_other_items_or_in_another_order_are_refused(tmp_path: Path) -> None:
    folder, items = tmp_path / "flat", clustered(61)
    with pytest.raises(UserError, match=r"60 items cannot be in 61 shards; choose 1 to 60"):
        save_shards(folder, items, 61, flat)
    assert not [*tmp_path.iterdir()]
    save_shards(folder, items, 3, flat)
    with pytest.raises(UserError, match="does not hold the items of the model"):
        load(folder, CHECKSUM, items[:-1])
    with pytest.raises(UserError, match="another model"):
        load(folder, "b" * 64, items)
    first, second = folder / "shard-0000", folder / "shard-0001"
    first.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"shard-0000/index\.json does not exist.*mealrec index"):
        load(folder, CHECKSUM, items)
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(UserError, match=r"shard-0000/index\.json is damaged"):
        load(folder, CHECKSUM, items)


def test_one_index_replaces_shards_and_the_reverse(tmp_path: Path) -> None:
    folder, items = tmp_path / "flat", clustered(61)
    save_shards(folder, items, 3, flat)
    flat(items).save(folder)
    assert "shards" not in load(folder, CHECKSUM, items).description
    save_shards(folder, items, 2, flat)
    assert load(folder, CHECKSUM, items).description.startswith("2 shards")
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]
