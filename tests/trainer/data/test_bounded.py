"""Files that claim or unpack to more than they hold are refused before memory is taken for it."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import UserError
from tests.helpers.extraction_job import run
from tests.helpers.tiny_runs import make_dataset
from trainer.data.bounded import MALFORMED, check_parquet, map_npy, read_npz
from trainer.data.features import open_features
from trainer.data.format import manifest as manifests
from trainer.data.format.dataset import Dataset
from trainer.data.provided import feature_content
from trainer.data.sources.parquet import read_parquet
from trainer.evaluation.run_ranks import read_ranks
from trainer.extract.pipeline.units import pack, unpack

MB = 1 << 20


@contextmanager
def little_memory(most: int = 24 * MB) -> Iterator[None]:
    """At most so many bytes are allocated, by Python and numpy, in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def npy(path: Path, shape: tuple[int, ...], body: int, descr: str = "<f4", version: int = 1) -> Path:
    """A file whose header claims this shape, with `body` zeros behind it, which take no room on the disk."""
    with path.open("wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
        write(file, header)
        file.truncate(file.tell() + body)
    return path


@pytest.mark.parametrize(
    ("shape", "body", "descr"),
    [
        ((10**18, 4), 16, "<f4"),
        ((4, 10**19), 16, "<f4"),
        ((4, -4), 64, "<f4"),
        ((4, 4), 63, "<f4"),
        ((4, 4), 65, "<f4"),
        ((1,), 8, "|O"),
    ],
)
def test_a_header_that_claims_what_the_file_has_not(
    tmp_path: Path, shape: tuple[int, ...], body: int, descr: str
) -> None:
    path = npy(tmp_path / "a.npy", shape, body, descr)
    with little_memory(), pytest.raises(ValueError, match="its header claims"):
        map_npy(path, "r")
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    path.rename(tmp_path / "text.npy")
    with pytest.raises(UserError, match=r"text\.npy cannot be read as a \.npy array \(its header claims"):
        feature_content([str(tmp_path)], ["a"], tmp_path)


@pytest.mark.parametrize("begin", [b"", b"PK\x03\x04", b"\x93NUMPY\x03\x00", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"])
def test_what_is_no_array(tmp_path: Path, begin: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(begin)
    with little_memory(), pytest.raises(MALFORMED):
        map_npy(tmp_path / "a.npy", "r")


def test_what_numpy_writes_is_read(tmp_path: Path) -> None:
    for number, array in enumerate([np.zeros((0, 3)), np.array(5), np.asfortranarray(np.arange(6.0).reshape(2, 3))]):
        np.save(tmp_path / f"{number}.npy", array)
        np.savez(tmp_path / f"{number}.npz", a=array)
        if array.size:
            assert np.array_equal(map_npy(tmp_path / f"{number}.npy", "c"), array)
        assert np.array_equal(read_npz(tmp_path / f"{number}.npz")["a"], array)
    assert map_npy(npy(tmp_path / "long.npy", (4, 4), 64, version=2), "r").shape == (4, 4)


def test_a_sparse_array_needs_little_memory(tmp_path: Path) -> None:
    """1 GiB of zeros that take no room on the disk; an entry of 256 MiB is refused, as nobody has such vectors."""
    npy(tmp_path / "text.npy", (4, 1 << 26), 1 << 30)
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    with little_memory(), pytest.raises(UserError, match="268,435,456 bytes for each item; at most 4,194,304 are read"):
        feature_content([str(tmp_path)], ["a"], tmp_path)


def test_what_unpacks_to_more(tmp_path: Path) -> None:
    bomb = tmp_path / "ranks-test.npz"
    names = ("user", "target", "rank", "rank_masked", "cold")
    np.savez_compressed(bomb, **dict.fromkeys(names, np.zeros(1 << 22, np.int64)))
    assert bomb.stat().st_size < MB
    with little_memory(), pytest.raises(UserError, match="is compressed, and what it unpacks to is not known"):
        read_ranks(tmp_path, "test")
    with little_memory(), pytest.raises(ValueError, match="is compressed"):
        unpack(bomb.read_bytes())


def test_an_array_in_an_archive_that_claims_more(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", (1 << 40,), 8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(path, "a.npy")
    with little_memory(), pytest.raises(ValueError, match="its header claims"):
        read_npz(tmp_path / "a.npz")
    whole = pack({"a": np.arange(1000)})
    for cut in range(0, len(whole), 97):
        with pytest.raises(MALFORMED):
            unpack(whole[:cut])


@pytest.fixture
def features(tmp_path: Path) -> Path:
    run(tmp_path / "features", ["0", "1", "2"])
    return tmp_path / "features"


def replaced(folder: Path, manifest: str, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table of a folder and its checksum, as who made the folder could."""
    pq.write_table(change(pq.read_table(folder / name)), folder / name)
    content = json.loads((folder / manifest).read_text())
    content["files"][name] = manifests.file_info(folder / name).model_dump()
    (folder / manifest).write_text(json.dumps(content))


def test_a_table_with_more_rows_than_the_manifest_says(features: Path, tmp_path: Path) -> None:
    rows = 1_000_000

    def bomb(table: pa.Table) -> pa.Table:
        return pa.table({name: pa.repeat(table[name][0], rows) for name in table.column_names if name != "times"})

    replaced(features, "features.json", "items.parquet", bomb)
    assert (features / "items.parquet").stat().st_size < MB
    with little_memory(), pytest.raises(UserError, match="it has 1,000,000 rows, and not 3"):
        open_features(str(features))
    data = make_dataset(tmp_path / "data")
    replaced(data, "manifest.json", "users.parquet", bomb)
    with little_memory(), pytest.raises(UserError, match="it has 1,000,000 rows, and not 80"):
        Dataset.open(data).user_ids()


def test_long_lists_in_a_table() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"times": pa.array([np.zeros(100_000, np.float32)])}), buffer)
    with pytest.raises(ValueError, match="100,000 values in 1 rows"):
        check_parquet(buffer, 1)


def test_a_log_that_is_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame({"user": ["a"] * 100_000}).write_parquet(tmp_path / "log.parquet")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=500_000))
    with pytest.raises(UserError, match=r"says that it has 100,000 rows, which need 0\.0 GB of memory"):
        read_parquet(tmp_path / "log.parquet", ["user"])


@pytest.mark.parametrize("name", ["manifest.json", "features.json"])
def test_no_more_of_a_manifest_is_read_than_one_has(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 32)
    monkeypatch.setattr(manifests, "MAX_BYTES", MB)
    monkeypatch.setattr("trainer.data.features.MAX_BYTES", MB)
    read: Callable[[], Any] = {
        "manifest.json": lambda: manifests.load_manifest(tmp_path),
        "features.json": lambda: open_features(str(tmp_path)),
    }[name]
    with little_memory(), pytest.raises(UserError, match="is not valid JSON"):
        read()
