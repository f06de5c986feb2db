"""Times: numbers, ISO 8601, formats of the user and datetimes; repeats only where they are exactly equal."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from models.errors import UserError
from trainer.data.sources.base import Log
from trainer.data.sources.recbole import read_recbole
from trainer.data.sources.table import read_table

NOON = 1767268800  # 2026-01-01 12:00:00 UTC


def read(folder: Path, *times: str, time_format: str | None = None) -> Log:
    rows = [f'u,i{n},"{time}"' for n, time in enumerate(times)]
    (folder / "a.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    return read_table(folder / "a.csv", "user", "item", "time", time_format=time_format)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01", NOON - 12 * 3600),
        ("2026-01-01 12:00", NOON),
        ("2026-01-01 12:00:00", NOON),
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01 12:00:00 UTC", NOON),
        ("2026-01-01T12:00:00.999", NOON),
        ("2026-01-01T12:00:00,123456789+00:00", NOON),
        ("2026-01-01T17:30:00+05:30", NOON),
        ("2026-01-01 04:00:00-0800", NOON),
        ("2026-01-01T13:00:00+01", NOON),
        ("1969-12-31T23:59:59.5Z", -1),
        ("9999-12-31 23:59:59", 253402300799),
    ],
)
def test_iso_8601(tmp_path: Path, text: str, seconds: int) -> None:
    assert read(tmp_path, text).frame["time"].to_list() == [seconds]


def test_fractions_and_zones_order_rows(tmp_path: Path) -> None:
    times = ["2026-01-01T12:00:00.5+00:00", "2026-01-01T12:00:00.25+00:00", "2026-01-01T12:00:00+01:00"]
    assert read(tmp_path, *times).frame["item"].to_list() == ["i2", "i1", "i0"]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2026-01-01", "2026-13-01"], "line 3: time '2026-13-01' is not a time"),
        (["2026-01-01", "17"], "line 3: time '17' is not a time as those before it"),
        (["17", "2026-01-01"], "line 3: time '2026-01-01' is not a time"),
        (["2026-01-01 25:00:00"], "line 2: time '2026-01-01 25:00:00' is not a time.*--time-format"),
        (["2026-01-01 12:00:00Z", "2026-01-01 12:00:00"], "line 3: time '2026-01-01 12:00:00' has no zone, others"),
    ],
)
def test_times_that_do_not_fit(tmp_path: Path, times: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.csv, {message}"):
        read(tmp_path, *times)


def test_a_format_of_the_user(tmp_path: Path) -> None:
    assert read(tmp_path, "01.01.2026 12:00", time_format="%d.%m.%Y %H:%M").frame["time"].to_list() == [NOON]
    assert read(tmp_path, "1/1/2026", time_format="%m/%d/%Y").frame["time"].to_list() == [NOON - 12 * 3600]
    zoned = read(tmp_path, "1.1.2026 13:00 +0100", time_format="%d.%m.%Y %H:%M %z")
    assert zoned.frame["time"].to_list() == [NOON]
    with pytest.raises(UserError, match=r"line 3: time '2026-01-01' is not written as --time-format %d.%m.%Y"):
        read(tmp_path, "01.01.2026", "2026-01-01", time_format="%d.%m.%Y")


def test_repeats_are_rows_of_exactly_equal_time(tmp_path: Path) -> None:
    log = read(tmp_path, "0.1", "0.25", "0.4", "0.25")
    assert len(log.frame) == 4
    (tmp_path / "days.csv").write_text("user,item,time\nu,a,0.1\nu,b,0.25\nu,a,0.4\nu,a,0.4\n")
    log = read_table(tmp_path / "days.csv", "user", "item", "time")
    assert log.frame["item"].to_list() == ["a", "b", "a"]
    assert log.dropped == {"duplicate rows": 1}
    inter = (
        "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1593878903.438\nu\tb\t1593878903.6\nu\ta\t1593878903.9\n"
    )
    (tmp_path / "k.inter").write_text(inter)
    assert read_recbole(tmp_path / "k.inter").frame["item"].to_list() == ["a", "b", "a"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_repeats_of_datetimes(tmp_path: Path, unit: str) -> None:
    step = {"ms": 10**6, "us": 10**3, "ns": 1}[unit]
    times = pl.Series([0, step, step], dtype=pl.Int64).cast(pl.Datetime("ns")).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    pl.DataFrame({"user": ["u"] * 3, "item": ["a"] * 3, "time": times}).write_parquet(tmp_path / "a.parquet")
    log = read_table(tmp_path / "a.parquet", "user", "item", "time")
    assert (len(log.frame), log.dropped) == (2, {"duplicate rows": 1})


@pytest.mark.parametrize(
    ("times", "note"),
    [
        (["0.1", "0.5"], "all times are fractions within one unit"),
        (["7", "7"], "all rows have the same time (7)"),
        (["7", "8"], ""),
        (["7"], ""),
    ],
)
def test_times_that_are_all_one_are_reported(tmp_path: Path, times: list[str], note: str) -> None:
    notes = read(tmp_path, *times).notes
    assert len(notes) == bool(note)
    assert all(note in each for each in notes)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (datetime.timedelta(1), "time column is Duration"),
        (datetime.time(1), "time column is Time"),
        (Decimal("1.5"), "time column is Decimal"),
        (b"1", "time column is Binary"),
    ],
    ids=str,
)
def test_types_that_are_no_times(tmp_path: Path, value: object, message: str) -> None:
    pl.DataFrame({"user": ["u"], "item": ["a"], "time": [value]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: the {message}"):
        read_table(tmp_path / "a.parquet", "user", "item", "time")
