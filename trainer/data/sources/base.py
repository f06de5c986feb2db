"""Interaction logs of several formats, read with polars into one shape; nothing is dropped without being counted."""

from __future__ import annotations

import codecs
import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from models.errors import UserError


@dataclass(frozen=True)
class Log:
    """An imported log. frame: user (String), item (String), time (Int64), and behaviours (UInt8) where there are any.

    Rows are in the order of the source, except that rows of one whole second keep the order of its fractions.
    titles: item -> title. dropped: reason -> count. files: what was read.
    """

    frame: pl.DataFrame
    files: tuple[Path, ...]
    titles: dict[str, str] = field(default_factory=dict)
    behaviour_names: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)


def make_log(frame: pl.DataFrame, file: Path, behaviours: bool = False) -> Log:
    """Check ids and times of a frame of user, item, time and _line; drop duplicates."""
    for column in ("user", "item"):
        refuse_null(frame, column, file)
    frame = _whole_times(frame, file).sort("_exact", maintain_order=True)
    key = ["user", "item", "time"]
    if behaviours:
        unique = frame.group_by(key, maintain_order=True).agg(pl.col("behaviours").bitwise_or())
    else:
        unique = frame.select(key).unique(maintain_order=True)
    return Log(unique, (file,), dropped={"duplicate rows": len(frame) - len(unique)})


def _whole_times(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    """`time` as Int64 seconds (or whatever unit the source has), and `_exact` to order rows within one of them."""
    time = pl.col("time")
    if frame.schema["time"].is_temporal():
        exact = frame.with_columns(time.cast(pl.Datetime("us")).dt.epoch("us").alias("_exact"))
        refuse_null(exact, "time", file)
        return exact.with_columns((pl.col("_exact") // 1_000_000).alias("time"))
    whole = frame.with_columns(time.cast(pl.Int64, strict=False).alias("_exact"))
    if frame.schema["time"].is_integer() or frame.schema["time"] == pl.String:
        if not whole["_exact"].has_nulls():
            return whole.with_columns(pl.col("_exact").alias("time"))
    elif not frame.schema["time"].is_float():
        raise UserError(f"{file}: the time column is {frame.schema['time']}; give numbers such as Unix seconds")
    real = frame.with_columns(time.cast(pl.Float64, strict=False).alias("_exact"))
    bad = ~(pl.col("_exact").is_finite() & (pl.col("_exact").abs() < 2.0**63)).fill_null(False)
    refuse_where(real, bad, "time", file, "is not a time; give numbers such as Unix seconds")
    # integers beside fractions go through Float64 only for the order: 2^53 seconds is far beyond any calendar
    return real.with_columns(pl.col("_exact").floor().cast(pl.Int64).alias("time"))


def titles_of(frame: pl.DataFrame) -> dict[str, str]:
    """The first title of each item that has one."""
    known = frame.filter(pl.col("title").is_not_null()).unique("item", keep="first", maintain_order=True)
    return dict(known.select("item", "title").iter_rows())


def read_columns(file: Path, separator: str, names: dict[str, str], extra: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of a delimited file with a header: `names` maps ours to the file's; plus `_line`."""
    header = read_header(file, separator)
    for name in names.values():
        require_column(file, name, header)
    frame = read_delimited(file, separator, header, header=True)
    return frame.select(*(pl.col(theirs).alias(ours) for ours, theirs in names.items()), *extra, "_line")


def read_delimited(file: Path, separator: str, columns: Sequence[str], header: bool = False) -> pl.DataFrame:
    """A delimited file as columns of strings without surrounding blanks, empty cells null, and `_line`."""
    _refuse_binary(file)
    quote = '"' if separator == "," else None
    try:
        frame = pl.read_csv(file, has_header=header, separator=separator, quote_char=quote, infer_schema=False)
    except pl.exceptions.NoDataError:
        raise UserError(f"{file} has no rows; is it the right file?") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(_locate(file, separator, len(columns)) or f"{file} cannot be read: {error}") from None
    if frame.width != len(columns):
        found = f"{file} has {frame.width} columns, expected {len(columns)}: {', '.join(columns)}"
        raise UserError(_locate(file, separator, len(columns)) or found)
    frame.columns = list(columns)
    first = 2 if header else 1
    text = pl.all().str.strip_chars()
    frame = frame.with_columns(pl.when(text != "").then(text))
    frame = frame.with_columns(_line=pl.int_range(first, pl.len() + first))
    frame = frame.filter(~pl.all_horizontal(pl.col(columns).is_null()))
    if frame.is_empty():
        raise UserError(f"{file} has no rows{' after its header' if header else ''}; is it the right file?")
    return frame


def read_header(file: Path, separator: str) -> list[str]:
    cells = next(csv.reader([first_line(file)], delimiter=separator), [])
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header or "_line" in header:
        raise UserError(f"{file}, line 1: column names are empty, twice there or reserved: {twice or header}")
    return header


def first_line(file: Path) -> str:
    _refuse_binary(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        line = stream.readline()
    if not line.strip():
        raise UserError(f"{file}, line 1 is empty; expected a header or data")
    return line.rstrip("\r\n")


def _refuse_binary(file: Path) -> None:
    """UserError: cannot be opened, empty, or not UTF-8, with the line of the first bad byte."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise UserError(f"{file} is empty")
            stream.seek(0)
            while piece := stream.read(1 << 20):
                try:
                    decoder.decode(piece)
                except UnicodeDecodeError as error:
                    # error.object starts with what the decoder held back; newlines in that part are none
                    line += error.object[: error.start].count(b"\n")
                    raise UserError(f"{file}, line {line} is not UTF-8; convert it, e.g. with iconv") from None
                line += piece.count(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {line} ends within a character: the file is truncated") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None


def _locate(file: Path, separator: str, width: int) -> str | None:
    """Where a delimited file that polars refuses has the first line of another width; None where there is none."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        quote = '"' if separator == "," else None
        reader = csv.reader(stream, delimiter=separator, quotechar=quote)
        try:
            for cells in reader:
                if len(cells) > width:
                    return (
                        f"{file}, line {reader.line_num} has {len(cells)} columns instead of {width}; "
                        'put text that contains commas in double quotes ("...")'
                    )
        except csv.Error as error:
            return f"{file}, line {reader.line_num}: {error}"
    return None


def require_column(file: Path, name: str, header: Iterable[str]) -> str:
    """`name`, if the file has this column; UserError with the nearest name otherwise."""
    columns = list(header)
    if name in columns:
        return name
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{file}, line 1 has no column {name!r}{hint} It has: {', '.join(columns)}")


def refuse_null(frame: pl.DataFrame, column: str, file: Path) -> None:
    refuse_where(frame, pl.col(column).is_null(), column, file, "is missing")


def refuse_where(frame: pl.DataFrame, bad: pl.Expr, column: str, file: Path, what: str) -> None:
    """UserError naming the first line where `bad` holds."""
    found = frame.filter(bad).head(1)
    if len(found):
        value = found[column][0]
        shown = "" if value is None else f" {str(value)[:80]!r}"
        raise UserError(f"{file}, line {found['_line'][0]}: {column}{shown} {what}; mend or remove this line")
