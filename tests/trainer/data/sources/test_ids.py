"""Ids: the same from every kind of file, and refused with their line where they are none."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.errors import UserError
from trainer.data.provided import feature_content
from trainer.data.sources.ids import as_id
from trainer.data.sources.items import read_items
from trainer.data.sources.table import read_table


def items(path: Path) -> list[str]:
    return read_table(path, "user", "item", "time").frame["item"].to_list()


@pytest.mark.parametrize(
    "column",
    [
        [101, 2, 3],
        [101.0, 2.0, 3.0],
        ["101", " 2", "3\t"],
        ["101.0", "2.0", "3.0"],
        [b"101", b"2 ", b"3"],
        pl.Series(["101", "2", "3"], dtype=pl.Categorical),
        pl.Series([101, 2, 3], dtype=pl.UInt16),
    ],
    ids=str,
)
def test_ids_are_the_same_from_every_file(tmp_path: Path, column: list[object]) -> None:
    frame = pl.DataFrame({"user": ["u"] * 3, "item": column, "time": [1, 2, 3]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.with_columns(pl.col("item").cast(pl.String)).write_csv(tmp_path / "a.csv")
    for name in ("a.parquet", "a.csv"):
        assert items(tmp_path / name) == ["101", "2", "3"]
        assert read_items(tmp_path / name)["item"].to_list() == ["101", "2", "3"]


def test_text_with_a_point_stays_where_not_all_of_it_ends_in_zero(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,time\nu,1.0,1\nu,1.1,2\n")
    assert items(tmp_path / "a.csv") == ["1.0", "1.1"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None, "c"], "row 2: item is missing"),
        (["a", " ", "c"], "row 2: item is missing"),
        ([1.0, 2.5, 3.0], "row 2: item '2.5' is not an id"),
        ([1.0, 2.0, 2.0**53], "row 3: item '9007199254740992.0' is not an id"),
        ([1.0, float("nan"), 3.0], "row 2: item 'nan' is not an id"),
        ([1.0, float("inf"), 3.0], "row 2: item 'inf' is not an id"),
        ([1.0, None, 3.0], "row 2: item is missing"),
        ([b"a", b"\xff", b"c"], "row 2: item .* is not UTF-8"),
        ([Decimal("1"), Decimal("2"), Decimal("3")], "column item is Decimal"),
        ([datetime.timedelta(1)] * 3, "column item is Duration"),
        ([datetime.time(1)] * 3, "column item is Time"),
        ([True, False, True], "column item is Boolean"),
    ],
    ids=str,
)
def test_what_is_no_id_is_refused(tmp_path: Path, column: list[object], message: str) -> None:
    pl.DataFrame({"user": ["u"] * 3, "item": column, "time": [1, 2, 3]}).write_parquet(tmp_path / "a.parquet")
    for read in (items, read_items):
        with pytest.raises(UserError, match=rf"a\.parquet.*{message}"):
            read(tmp_path / "a.parquet")


@pytest.mark.parametrize("ids", [b"\xef\xbb\xbf101\r\n7\r\n", b"101.0\n7.0\n", b'"101"\n"7"', b" 101\n7 \n"])
def test_ids_of_given_vectors(tmp_path: Path, ids: bytes) -> None:
    """A byte order mark, quotes, blanks and .0 do not part an item from its vector."""
    (tmp_path / "ids.txt").write_bytes(ids)
    np.save(tmp_path / "text.npy", np.eye(2, dtype=np.float32))
    values, present = feature_content([str(tmp_path)], ["7", "101"], tmp_path).content["text"].read(0, 2)
    assert present.all()
    assert values.tolist() == [[0, 1], [1, 0]]


def test_an_empty_line_between_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\n\nb\n")
    np.save(tmp_path / "text.npy", np.eye(2, dtype=np.float32))
    with pytest.raises(UserError, match=r"ids\.txt has an empty line"):
        feature_content([str(tmp_path)], ["a", "b"], tmp_path)


def test_one_value_is_the_id_that_it_is_in_a_column() -> None:
    assert [as_id(value) for value in (101, 101.0, " 101\t", b"101 ", None)] == ["101", "101", "101", "101", ""]
    assert [as_id(value) for value in (1.5, 2.0**53, float("nan"), b"\xff")] == ["1.5", str(2.0**53), "nan", "\ufffd"]
