"""Times of interactions: whole numbers to keep, and exact ones that order rows and tell repeats apart."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import refuse_null, refuse_where

_READ = "give numbers such as Unix seconds, times such as 2026-01-31 10:00:00 (ISO 8601), or --time-format"
_ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d|60)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)
_SECOND = 1_000_000  # microseconds


def add_time_format(parser: argparse.ArgumentParser) -> None:
    """Add the option of every source whose times may be text."""
    parser.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="how times are written, e.g. '%%d.%%m.%%Y %%H:%%M' (numbers and ISO 8601 need none; no zone means UTC)",
    )


@dataclass(frozen=True)
class TextTimes:
    """How times are written that are text without a format. iso: as ISO 8601, by the first of them; integers: all are
    whole numbers; fine: of those in ISO 8601, some are finer than microseconds; zoned, plain: some have a zone, some
    have none."""

    iso: bool
    integers: bool
    fine: bool
    zoned: bool
    plain: bool

    @classmethod
    def of(cls, times: pl.Series) -> TextTimes:
        """Of a column of text."""
        first = times[:1]
        iso = first.cast(pl.Float64, strict=False).has_nulls() and bool(first.str.contains(_ISO).all())
        if not iso:
            return cls(iso, not times.cast(pl.Int64, strict=False).has_nulls(), fine=False, zoned=False, plain=True)
        parts = times.str.extract_groups(_ISO).struct
        zones, fractions = parts.field("zone"), parts.field("fraction")
        return cls(
            iso,
            integers=False,
            fine=bool((fractions.str.len_bytes() > 6).any()),
            zoned=bool(zones.is_not_null().any()),
            plain=bool(zones.is_null().any()),
        )

    @classmethod
    def of_all(cls, parts: Sequence[TextTimes]) -> TextTimes:
        """Of a column in parts, in their order; at least one."""
        return cls(
            iso=parts[0].iso,
            integers=all(part.integers for part in parts),
            fine=any(part.fine for part in parts),
            zoned=any(part.zoned for part in parts),
            plain=any(part.plain for part in parts),
        )


def with_times(
    frame: pl.DataFrame, file: Path, time_format: str | None = None, written: TextTimes | None = None
) -> pl.DataFrame:
    """`time` as whole numbers, Int64 (seconds, or the unit of the source), and `_exact`, of which `time` is the floor.

    time_format: of text, as for strftime. Text without one is numbers or ISO 8601. Times without a zone are UTC.
    written: how text is written in the whole log, of which `frame` is a part; None: `frame` is the whole.
    Raises UserError with the line: a time that is missing or cannot be read.
    """
    dtype = frame.schema["time"]
    refuse_null(frame, "time", file)
    if time_format is not None and dtype == pl.String:
        return _formatted(frame, file, time_format)
    if dtype in (pl.Datetime, pl.Date):
        unit: Literal["ns", "us"] = "ns" if getattr(dtype, "time_unit", None) == "ns" else "us"
        exact = pl.col("time").cast(pl.Datetime(unit)).dt.epoch(unit)
        return _floored(frame.with_columns(exact.alias("_exact")), 1_000_000_000 if unit == "ns" else _SECOND)
    if dtype.is_integer():
        return _integers(frame, file)
    if dtype.is_float():
        return _reals(frame, file)
    if dtype != pl.String:
        raise UserError(f"{file}: the time column is {dtype}; give numbers such as Unix seconds, or datetimes")
    written = written or TextTimes.of(frame["time"])
    if written.iso:
        return _iso(frame, file, written)
    if written.integers:
        return _integers(frame, file)
    return _reals(frame, file)


@dataclass(frozen=True)
class Span:
    """Of a log's rows, how many there are, and the least and greatest of their times, whole and exact."""

    rows: int
    time: tuple[int, int]
    exact: tuple[float, float]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Span:
        """frame: as `with_times` gives it, with rows."""
        least, greatest = (frame.select(getattr(pl.col("time", "_exact"), end)()).row(0) for end in ("min", "max"))
        return cls(len(frame), (least[0], greatest[0]), (least[1], greatest[1]))

    def __or__(self, other: Span) -> Span:
        def joined(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> tuple[Any, Any]:
            return min(ours[0], theirs[0]), max(ours[1], theirs[1])

        return Span(self.rows + other.rows, joined(self.time, other.time), joined(self.exact, other.exact))


def collapsed(span: Span) -> str:
    """What to tell of a log all of whose times are one, "" for any other."""
    if span.rows < 2 or span.time[0] != span.time[1]:
        return ""
    if span.exact[0] == span.exact[1]:
        return f"all rows have the same time ({span.time[0]}): rows stay in the order of the file"
    return (
        f"all times are fractions within one unit ({span.time[0]}): they order the rows, but only whole units are "
        "kept; give them in a smaller unit (days as seconds, say) to keep them"
    )


def _floored(frame: pl.DataFrame, unit: int) -> pl.DataFrame:
    return frame.with_columns((pl.col("_exact") // unit).alias("time"))


def _integers(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    whole = frame.with_columns(pl.col("time").cast(pl.Int64, strict=False).alias("_exact"))
    refuse_where(whole, pl.col("_exact").is_null(), "time", file, f"is not a time; {_READ}")
    return whole.with_columns(pl.col("_exact").alias("time"))


def _reals(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    real = frame.with_columns(pl.col("time").cast(pl.Float64, strict=False).alias("_exact"))
    bad = ~(pl.col("_exact").is_finite() & (pl.col("_exact").abs() < 2.0**63)).fill_null(False)
    refuse_where(real, bad, "time", file, f"is not a time; {_READ}")
    # integers beside fractions go through Float64 only for the order: 2^53 seconds is far beyond any calendar
    return real.with_columns(pl.col("_exact").floor().cast(pl.Int64).alias("time"))


def _iso(frame: pl.DataFrame, file: Path, written: TextTimes) -> pl.DataFrame:
    parts = frame.with_columns(pl.col("time").str.extract_groups(_ISO).alias("_parts"))

    def part(name: str) -> pl.Expr:
        return pl.col("_parts").struct.field(name)

    def number(text: pl.Expr) -> pl.Expr:
        return text.cast(pl.Int64).fill_null(0)

    day = part("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us")
    seconds = (number(part("hour")) * 60 + number(part("minute"))) * 60 + number(part("second"))
    digits = part("zone").str.replace(":", "")
    places = 9 if written.fine else 6  # nanoseconds hold no year after 2262, so only where they are given
    whole = day // _SECOND + seconds - _ahead(digits)
    exact = (whole * 10**places + number(part("fraction").str.pad_end(places, "0"))).alias("_exact")
    read = parts.with_columns(whole.alias("_whole"), part("zone").alias("_zone"), exact)
    refuse_where(read, pl.col("_whole").is_null(), "time", file, f"is not a time as those before it; {_READ}")
    zoned = pl.col("_zone").is_not_null()
    if written.zoned and written.plain:
        refuse_where(read, ~zoned, "time", file, "has no zone, others have one")
    return read.with_columns(pl.col("_whole").alias("time")).drop("_parts", "_whole", "_zone")


def _ahead(zone: pl.Expr) -> pl.Expr:
    """Seconds by which a zone such as +0530 is ahead of UTC."""
    hours = zone.str.extract(r"^[+-](\d{2})").cast(pl.Int64).fill_null(0)
    minutes = zone.str.extract(r"^[+-]\d{2}(\d{2})").cast(pl.Int64).fill_null(0)
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    return sign * (hours * 60 + minutes) * 60


def _formatted(frame: pl.DataFrame, file: Path, time_format: str) -> pl.DataFrame:
    try:
        at = frame["time"].str.to_datetime(time_format, strict=False, time_unit="us")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"--time-format {time_format}: {error}") from None
    exact = frame.with_columns(at.dt.epoch("us").alias("_exact"))
    refuse_where(exact, pl.col("_exact").is_null(), "time", file, f"is not written as --time-format {time_format}")
    return _floored(exact, _SECOND)
