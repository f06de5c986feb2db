"""A source of interactions: what it must offer, the log that it gives, and helpers that read and check tables.

Nothing is dropped without being counted; what is malformed is refused with its file and line.
"""

from __future__ import annotations

import argparse
import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from models.errors import UserError
from trainer.text_files import check_text, open_text


@dataclass(frozen=True)
class Log:
    """Interactions. frame: user (String), item (String), time (Int64), and behaviours (UInt8) where there are any.

    Rows of equal time are in the order of the source; fractions of a second decide before it does.
    titles: item -> title. behaviour_names: what the bits of behaviours mean, lowest first. dropped: reason -> count.
    files: what was read.
    """

    frame: pl.DataFrame
    files: tuple[Path, ...]
    titles: dict[str, str] = field(default_factory=dict)
    behaviour_names: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """A format of interaction logs: `mealrec prepare NAME` for the name under which it is registered.

    help: what it reads, in words. example: a whole command, for the help.
    """

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this source has."""
        ...

    def read(self, args: argparse.Namespace) -> Log:
        """The log that these options name. Raises UserError: what is wrong, with file and line, and what to do."""
        ...


def make_log(frame: pl.DataFrame, file: Path, behaviours: bool = False) -> Log:
    """The log of a frame with user, item and time (numbers, text of numbers, or datetimes) read from `file`.

    Rows that are equal in all three are kept once and counted; their `behaviours` (UInt8, bits) are joined.
    `_line`: the line of each row in the file; without it rows count as lines.
    Raises UserError with the line: an id that is missing, a time that is none.
    """
    if "_line" not in frame.columns:
        frame = frame.with_columns(_line=pl.int_range(1, pl.len() + 1))
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
    """Columns of a delimited file with a header, as `read_delimited` gives them.

    names: our name of a column -> the file's. extra: more of the file's columns. Raises UserError: one is not there.
    """
    header = read_header(file, separator)
    for name in names.values():
        require_column(file, name, header)
    frame = read_delimited(file, separator, header, header=True)
    return frame.select(*(pl.col(theirs).alias(ours) for ours, theirs in names.items()), *extra, "_line")


def read_delimited(file: Path, separator: str, columns: Sequence[str], header: bool = False) -> pl.DataFrame:
    """A delimited file as columns of strings without surrounding blanks, empty cells null, and `_line`.

    columns: their names; header: whether line 1 holds names and no data. Raises UserError with the line of the trouble.
    """
    check_text(file)
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


def read_parquet(file: Path, columns: Iterable[str], extra: Iterable[str] = ()) -> pl.DataFrame:
    """`columns`, those of `extra` that are there, and `_line` (rows count as lines) of a Parquet file.

    Raises UserError: unreadable, a column that is not there or holds lists or the like, no rows.
    """
    try:
        schema = pl.read_parquet_schema(file)
        wanted = [require_column(file, name, schema) for name in dict.fromkeys(columns)]
        wanted += [name for name in extra if name in schema]
        frame = pl.read_parquet(file, columns=wanted)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({error})") from None
    if frame.is_empty():
        raise UserError(f"{file} has no rows; is it the right file?")
    for name, dtype in frame.schema.items():
        if dtype.is_nested():
            raise UserError(f"{file}: column {name!r} is {dtype}; one value per row is expected")
    return frame.with_columns(_line=pl.int_range(1, pl.len() + 1))


def read_header(file: Path, separator: str) -> list[str]:
    """The names of the columns in line 1. Raises UserError: empty, repeated or reserved names."""
    cells = next(csv.reader([first_line(file)], delimiter=separator), [])
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header or "_line" in header:
        raise UserError(f"{file}, line 1: column names are empty, repeated or reserved: {twice or header}")
    return header


def first_line(file: Path) -> str:
    """Line 1 of a text file without its end. Raises UserError: it is blank, or the file is not text."""
    with open_text(file) as stream:
        line = stream.readline()
    if not line.strip():
        raise UserError(f"{file}, line 1 is empty; expected a header or data")
    return line.rstrip("\r\n")


def _locate(file: Path, separator: str, width: int) -> str | None:
    """What is wrong with a delimited file that polars refuses: its first line with too many columns, else None."""
    with open_text(file) as stream:
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
    """`name`. Raises UserError with the nearest name where it is not in the header."""
    columns = list(header)
    if name in columns:
        return name
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{file}, line 1 has no column {name!r}{hint} It has: {', '.join(columns)}")


def refuse_null(frame: pl.DataFrame, column: str, file: Path) -> None:
    """Raises UserError with the first line where `column` has no value."""
    refuse_where(frame, pl.col(column).is_null(), column, file, "is missing")


def refuse_where(frame: pl.DataFrame, bad: pl.Expr, column: str, file: Path, what: str) -> None:
    """Raises UserError with the first line where `bad` holds. what: the end of "FILE, line N: COLUMN VALUE ..."."""
    found = frame.filter(bad).head(1)
    if len(found):
        value = found[column][0]
        shown = "" if value is None else f" {str(value)[:80]!r}"
        raise UserError(f"{file}, line {found['_line'][0]}: {column}{shown} {what}; correct or remove this line")
