"""Delimited text files of users, as columns of strings with the line of each row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import require_column
from trainer.text_files import check_text, open_text


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
