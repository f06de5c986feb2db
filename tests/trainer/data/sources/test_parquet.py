"""Parquet under any name and in parts; other kinds of files are named for what they are."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from models.errors import UserError
from trainer.data.sources.base import Log
from trainer.data.sources.items import read_items
from trainer.data.sources.table import read_table

FRAME = pl.DataFrame({"user": ["u", "u", "u"], "item": ["a", "b", "c"], "time": [1, 2, 3]})


def table(path: Path) -> Log:
    return read_table(path, "user", "item", "time")


def test_a_folder_of_parts(tmp_path: Path) -> None:
    folder = tmp_path / "log.parquet"
    (folder / "day=2").mkdir(parents=True)
    FRAME[:1].write_parquet(folder / "part-0.parquet")
    FRAME[1:].with_columns(user=pl.lit("v")).write_parquet(folder / "day=2" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"x")
    log = table(folder)
    assert log.frame.rows() == [("u", "a", 1), ("v", "b", 2), ("v", "c", 3)]
    assert [path.name for path in log.files] == ["part-0.parquet", "part-0.parquet"]
    assert read_items(folder)["item"].to_list() == ["b", "c", "a"]  # parts in the order of their paths


def test_a_bad_row_is_named_with_its_part(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "0.parquet")
    FRAME.with_columns(item=pl.Series(["a", None, "c"])).write_parquet(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet, row 2: item is missing; correct or remove this row"):
        table(tmp_path)
    FRAME.with_columns(item=pl.Series([[1], [2], [3]])).write_parquet(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet: column 'item' is List"):
        table(tmp_path)
    FRAME.with_columns(pl.col("time").cast(pl.Datetime("us"))).write_parquet(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"differ in the type of 'time' \(Datetime.*, Int64\)"):
        table(tmp_path)


def test_parts_of_both_kinds_count_as_they_are_read(tmp_path: Path) -> None:
    text = FRAME.with_columns(pl.all().cast(pl.String))
    text.with_columns(item=pl.Series(["a", None, "c"])).write_parquet(tmp_path / "0.parquet")
    text.write_csv(tmp_path / "1.csv")
    with pytest.raises(UserError, match=r"0\.parquet, row 2: item is missing"):
        table(tmp_path)
    text.write_parquet(tmp_path / "0.parquet")
    text.with_columns(item=pl.Series(["a", None, "c"])).write_csv(tmp_path / "1.csv")
    with pytest.raises(UserError, match=r"1\.csv, line 3: item is missing"):
        table(tmp_path)


def test_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "part-0.txt")
    with pytest.raises(UserError, match=r"folder without parts of a log \(such as part-0\.txt\)"):
        table(tmp_path)


@pytest.mark.parametrize("name", ["log.parq", "log", "log.csv"])
def test_parquet_is_seen_from_the_file(tmp_path: Path, name: str) -> None:
    FRAME.write_parquet(tmp_path / name)
    assert table(tmp_path / name).frame.rows() == FRAME.rows()


def test_packed_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    text = FRAME.write_csv().encode()
    (tmp_path / "log").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "my log.zip", "w") as archive:
        archive.writestr("log.csv", text)
    with pytest.raises(UserError, match=r"log is a gzip file; unpack it: gunzip -k .*log"):
        table(tmp_path / "log")
    with pytest.raises(UserError, match=r"my log\.zip is a zip .* file; unpack it: unzip '.*my log\.zip'"):
        table(tmp_path / "my log.zip")
