"""`prepare` reads folders of features: damage is named, and several folders make one dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.errors import UserError
from tests.helpers.extraction_job import run
from trainer.commands import prepare as command
from trainer.data.features import open_features, read_vectors
from trainer.data.format.dataset import Dataset
from trainer.data.kept import PrepareOptions
from trainer.data.prepare import prepare
from trainer.data.provided import feature_content
from trainer.data.sources.base import Log


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Items i0 .. i5 with the numbers 10 .. 15, except i3, which failed."""
    run(tmp_path / "made", ["10", "11", "12", "bad", "14", "15"])
    return tmp_path / "made"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def numbers(folders: Sequence[Path], items: Sequence[str], scratch: Path) -> list[float | None]:
    """The number of each item, or None."""
    scratch.mkdir()
    text = feature_content([str(folder) for folder in folders], items, scratch).content["text"]
    values, present = text.read(0, len(items))
    return [float(value[0]) if there else None for value, there in zip(values, present, strict=True)]


def test_in_the_order_of_the_dataset(made: Path, tmp_path: Path) -> None:
    assert numbers([made], ["i5", "i3", "zz", "i0"], tmp_path / "x") == [15, None, None, 10]


def test_an_item_has_what_the_first_folder_gives(made: Path, tmp_path: Path) -> None:
    run(tmp_path / "more", ["20", "bad", "bad", "23"])
    items = ["i0", "i1", "i3", "i9"]
    assert numbers([made, tmp_path / "more"], items, tmp_path / "x") == [10, 11, 23, None]
    assert numbers([tmp_path / "more", made], items, tmp_path / "y") == [20, 11, 23, None]


def test_folders_that_do_not_agree(made: Path, tmp_path: Path) -> None:
    run(tmp_path / "more", ["20"])
    for number, (changes, words) in enumerate(
        [
            ({"encoder": "other numbers"}, "other numbers"),
            ({"encoder": "numbers", "settings": {"fps": 4.0}}, "4 frames"),
        ]
    ):
        edit(tmp_path / "more", **changes)
        with pytest.raises(UserError, match=rf"made and .*more both give 'text', but of different kinds: .*{words}"):
            numbers([made, tmp_path / "more"], ["i0"], tmp_path / f"x{number}")


def test_ids_of_another_catalogue(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the dataset's 2 items: ids there are like 'i0', .* like '10'"):
        numbers([made], ["10", "11"], tmp_path / "x")


def test_a_dataset_from_features(made: Path, tmp_path: Path) -> None:
    users = [user for user in "abcd" for _ in range(4)]
    frame = pl.DataFrame({"user": users, "item": ["i0", "i1", "i2", "i3"] * 4, "time": list(range(16))})
    out = tmp_path / "data"
    features = (f"file://{made}", str(tmp_path / "frames"))
    (tmp_path / "frames").mkdir()
    np.save(tmp_path / "frames" / "frames.npy", np.ones((1, 2, 3), np.float32))
    (tmp_path / "frames" / "ids.txt").write_text("i3\n")
    manifest = prepare(Log(frame, ()), out, PrepareOptions(features=features), "test")
    assert {name: (info.kind, info.missing) for name, info in manifest.content.items()} == {
        "text": ("title", 1), "sequence": ("frames", 3), "visual": ("frames mean", 3),
    }  # fmt: skip
    assert manifest.content["text"].encoder == "numbers"
    assert manifest.dropped["feature rows of items not in the dataset"] == 2
    assert {name.split("/")[-1] for name in manifest.provenance.sources} == {"features.json", "frames.npy", "ids.txt"}
    table = np.load(out / "table" / "text.npy")
    assert table[1:, 0].tolist() == [10, 11, 12, 0]
    # of 10 and 11, the items at training positions; i3 has none
    assert (manifest.content["text"].mean[0], manifest.content["text"].std[0]) == (10.5, 0.5)
    titles = pl.read_parquet(out / "items.parquet")["title"].to_list()
    assert titles == ["title 0", None, "title 2", None], "titles come from the features where the log has none"
    assert Dataset.open(out).item_ids() == ["i0", "i1", "i2", "i3"]
    assert [path.name for path in tmp_path.iterdir() if "features" in path.name] == [], "the scratch folder is gone"
    assert "content text: title, 3, missing for 1 items" in command.report(manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "has schema version 2"),
        ({"items": 0}, "key 'items'"),
        ({"items": 4}, "it has 5 rows, and not 4"),
        ({"surprise": 1}, "key 'surprise'"),
        ({"content": {"smell": {"shape": [3], "kind": "x"}}}, "key 'content.smell"),
        ({"content": {"text": {"shape": [4], "kind": "x"}}}, "expected float16|expected"),
        ({"files": {}}, "has no checksum for shard"),
        ({"shards": {}}, "the shards hold 0 items"),
        ({"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}, "lies outside"),
    ],
)
def test_manifests_that_are_refused(made: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(made, **changes)
    with pytest.raises(UserError, match=message):
        numbers([made], ["i0"], tmp_path / "x")


@pytest.mark.parametrize("name", ["items.parquet", "shards/items-00000.tar"])
@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
def test_damage_is_named(made: Path, tmp_path: Path, name: str, how: str) -> None:
    path = made / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if how != "missing":
        data[len(data) // 2] ^= 1
        path.write_bytes(data[:-100] if how == "cut" else data)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        numbers([made], ["i0"], tmp_path / "x")


def test_unpacked_arrays_are_the_vectors(made: Path, tmp_path: Path) -> None:
    features = open_features(str(made))
    (tmp_path / "x").mkdir()
    arrays = read_vectors(features, tmp_path / "x")
    assert arrays["text"].dtype == np.float16
    assert arrays["text"][:, 0].tolist() == [10, 11, 12, 14, 15]
    assert features.items["item"].to_list() == ["i0", "i1", "i2", "i4", "i5"]
