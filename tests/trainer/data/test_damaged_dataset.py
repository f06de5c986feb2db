"""Damaged datasets, and what is no dataset, are refused, and the message names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.errors import UserError
from tests.helpers.small_dataset import flip, write
from trainer.batches.item_table import load_table
from trainer.data.format.content import Content
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import parse_manifest
from trainer.data.format.node_copy import materialise
from trainer.data.storage import open_file

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["users.parquet", "sequences/items.npy", "shards/items-00000.tar"])
def test_copy_of_a_damaged_dataset_is_refused(copy: Path, name: str, tmp_path: Path) -> None:
    flip(copy / name)
    with pytest.raises(UserError, match=Path(name).name.replace(".", r"\.")):
        materialise(str(copy), tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []


def test_shards_of_another_dataset_than_its_table(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["table/text.npy"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"text\.npy does not match its sha256"):
        materialise(str(copy), tmp_path / "cache")


@pytest.mark.parametrize("damage", [flip, lambda p: p.write_bytes(p.read_bytes()[:-1]), Path.unlink])
def test_verify_names_every_damaged_file(root: Path, copy: Path, damage: Any) -> None:
    dataset = Dataset.open(copy)
    for name in dataset.manifest.files:
        if (copy / name).stat().st_size < 600:
            continue
        damage(copy / name)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            dataset.verify()
        shutil.copy(root / name, copy / name)
    dataset.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 1}', "schema version 1, this program reads 2"),
        ('{"schema_version": 2}', "key 'users': Field required"),
        ({"users": -1}, "key 'users'"),
        ({"surprise": 1}, "key 'surprise'"),
        ({"content": {"smell": {}}}, "key 'content"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "lies outside the folder"),
        ({"files": {"/x": {"bytes": 1, "sha256": "0" * 64}}}, "lies outside the folder"),
        ({"files": {}}, "no checksum for shard"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_malformed_manifest(root: Path, change: str | dict[str, Any], message: str) -> None:
    text = change
    if isinstance(change, dict):
        text = json.dumps(json.loads((root / "manifest.json").read_text()) | change)
    with pytest.raises(UserError, match=f"^here.*{message}"):
        parse_manifest(str(text), "here")


def test_no_dataset_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is .* a dataset made by `mealrec prepare`"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["sequences/offsets.npy", "sequences/items.npy", "table/text.npy"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{", "object", "short", "float"])
def test_array_files_that_do_not_fit(copy: Path, name: str, content: bytes | str) -> None:
    path = copy / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        array = np.load(path)
        bad = {"object": array.astype(object), "short": array[1:], "float": array.astype(np.float64)}[content]
        np.save(path, bad, allow_pickle=content == "object")
    with pytest.raises(UserError, match=Path(name).name.replace(".", r"\.")):
        load_table(Dataset.open(copy), CPU, "resident")


def test_offsets_that_do_not_fit_items(copy: Path) -> None:
    offsets = np.load(copy / "sequences/offsets.npy")
    offsets[3] = offsets[2] + 1
    np.save(copy / "sequences/offsets.npy", offsets)
    with pytest.raises(UserError, match="does not fit"):
        Dataset.open(copy)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"x"), Path.unlink])
def test_damaged_ids(copy: Path, damage: Any) -> None:
    damage(copy / "items.parquet")
    with pytest.raises(UserError, match=r"cannot read .*items\.parquet"):
        Dataset.open(copy).item_ids()


def test_content_that_is_not_finite(tmp_path: Path) -> None:
    def bad(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values = np.zeros((stop - start, 3))
        values[17] = np.inf
        return values, np.ones(stop - start, np.bool_)

    with pytest.raises(UserError, match="item number 17 is NaN or infinite"):
        write(tmp_path / "out", content={"text": Content((3,), bad, "title", "test")})
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused_and_kept(root: Path) -> None:
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="is not an empty folder"):
        write(root)
    assert (root / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("source", ["pipe://ls", "ftp://x/y", "simplecache::http://x", "file://x::pipe://ls"])
def test_only_known_urls_are_opened(source: str) -> None:
    with pytest.raises(UserError, match=r"URLs and local paths|cannot open"):
        open_file(source)


def test_pipe_is_a_path_and_never_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot open pipe:touch canary"):
        open_file("pipe:touch canary")
    assert list(tmp_path.iterdir()) == []
