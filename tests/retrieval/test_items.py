"""The items of an export: ids are found by their hashes, and a file that is not of items is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.errors import UserError
from retrieval import items as module
from retrieval.items import Items, read_items, write_items

IDS = ["b", "a b", "ü", "", "77", *(f"v{n}" for n in range(1000))]


def written(folder: Path, ids: list[str]) -> Items:
    titles = [f"title {n}" if n % 2 else None for n in range(len(ids))]
    write_items(folder / "items.arrow", ids, titles, list(range(len(ids))))
    return read_items(folder / "items.arrow", "do so")


def test_every_id_is_found_and_no_other(tmp_path: Path) -> None:
    items = written(tmp_path, IDS)
    assert items.rows(IDS) == list(range(1, len(IDS) + 1))
    assert items.rows(["c", "V1", "v1000", " ", "\ud800"]) == [None] * 5
    assert (items.row("ü"), items.row("u"), items.rows([]), len(items)) == (3, None, [], len(IDS))
    assert list(items.ids) == IDS
    assert items.ids[-1] == "v999"
    assert items.ids[1:6:2] == IDS[1:6:2]
    assert items.titles[:2] == [None, "title 1"]
    assert items.train_counts.tolist() == list(range(len(IDS)))


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda ids: np.array([len(each) for each in ids], dtype=np.uint64))
    items = written(tmp_path, IDS)
    assert items.rows([*IDS, "v", "none"]) == [*range(1, len(IDS) + 1), None, None]


def test_a_model_without_items_has_none(tmp_path: Path) -> None:
    items = written(tmp_path, [])
    assert (len(items), items.row("a"), list(items.ids)) == (0, None, [])


def test_what_is_not_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.arrow"
    right = {"id": ["a"], "title": [None], "train_count": [1], "hash": [5], "row": [1]}
    kinds = {name: pa.type_for_alias(kind) for name, kind in module._COLUMNS.items()}
    for changed, says in (
        ({"row": [2]}, "row leads beyond the items"),
        ({"row": [0]}, "row leads beyond the items"),
        ({"id": [None]}, "id has gaps"),
        ({"more": ["x"]}, "its columns are"),
    ):
        table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in (right | changed).items()})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match=f"{path} cannot be read: {says}.*; do so"):
            read_items(path, "do so")
    path.write_bytes(b"no arrow")
    with pytest.raises(UserError, match="cannot be read"):
        read_items(path, "do so")
