"""Delimited text files of users, as columns of strings with the line of each row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import require_column
from trainer.data.sources.quotes import cells_of, is_regular, records
from trainer.text_files import check_text, open_text


def read_columns(
    file: Path, separator: str, names: dict[str, str], extra: Sequence[str] = (), *, part: bool = False
) -> pl.DataFrame:
    """Columns of a delimited file with a header, as `read_delimited` gives them.

    names: our name of a column -> the file's. extra: more of the file's columns. Raises UserError: one is not there.
    """
    header = read_header(file, separator)
    for name in names.values():
        require_column(file, name, header)
    frame = read_delimited(file, separator, header, header=True, part=part)
    return frame.select(*(pl.col(theirs).alias(ours) for ours, theirs in names.items()), *extra, "_line")


def read_delimited(
    file: Path, separator: str, columns: Sequence[str], header: bool = False, *, part: bool = False
) -> pl.DataFrame:
    """A delimited file as columns of strings without surrounding blanks, empty cells null, and `_line`.

    columns: their names; header: whether line 1 holds names and no data. part: one of several, which may have no rows.
    Raises UserError with the line of the trouble.
    """
    check_text(file)
    frame = _fast(file, separator, columns, header) if is_regular(file, separator) else None
    if frame is None:
        frame = _by_records(file, separator, columns, header)
    text = pl.col(columns).str.strip_chars()
    frame = frame.with_columns(pl.when(text != "").then(text))
    frame = frame.filter(~pl.all_horizontal(pl.col(columns).is_null()))
    if frame.is_empty() and not part:
        raise UserError(f"{file} has no rows{' after its header' if header else ''}; is it the right file?")
    return frame


def _fast(file: Path, separator: str, columns: Sequence[str], header: bool) -> pl.DataFrame | None:
    """A file whose lines are records; None if polars refuses it, or finds other columns."""
    try:
        frame = pl.read_csv(
            file, has_header=header, separator=separator, infer_schema=False, glob=False, raise_if_empty=False
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(columns):
        return None
    frame.columns = list(columns)
    first = 2 if header else 1
    return frame.with_columns(_line=pl.int_range(first, pl.len() + first))


def _by_records(file: Path, separator: str, columns: Sequence[str], header: bool) -> pl.DataFrame:
    """Any file, more slowly; it knows the line of what is wrong."""
    width = len(columns)
    values: list[list[str | None]] = [[] for _ in columns]
    lines: list[int] = []
    for number, (line, cells) in enumerate(records(file, separator)):
        if len(cells) > width:
            advice = 'put text that contains commas in double quotes ("...")' if separator == "," else "correct it"
            raise UserError(f"{file}, line {line} has {len(cells)} columns instead of {width}; {advice}")
        if len(cells) < width and number == 0 and not header:
            raise UserError(f"{file}, line {line} has {len(cells)} columns, expected {width}: {', '.join(columns)}")
        if number or not header:
            lines.append(line)
            for n, column in enumerate(values):
                column.append(cells[n] if n < len(cells) else None)
    series = {name: pl.Series(column, dtype=pl.String) for name, column in zip(columns, values, strict=True)}
    return pl.DataFrame({**series, "_line": pl.Series(lines, dtype=pl.Int64)})


def separator_of(file: Path, names: Iterable[str]) -> str:
    """What separates the cells of line 1: a tab; or a semicolon, as in a German or French Excel, if one of `names` then
    is a column and no comma is there; else a comma."""
    line = first_line(file)
    if "\t" in line:
        return "\t"
    cells = {cell.strip().strip('"') for cell in line.split(";")}
    return ";" if "," not in line and len(cells) > 1 and cells & {*names} else ","


def read_header(file: Path, separator: str) -> list[str]:
    """The names of the columns in line 1; the first may be "", as pandas names an index.

    Raises UserError: names that are empty, repeated or reserved.
    """
    header = [cell.strip() for cell in first_cells(file, separator)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header[1:] or "_line" in header or header == [""]:
        raise UserError(f"{file}, line 1: column names are empty, repeated or reserved: {twice or header}")
    return header


def first_cells(file: Path, separator: str) -> list[str]:
    """The cells of line 1. Raises UserError: as `first_line`, or a quote that the line does not close."""
    cells = cells_of(first_line(file), separator, f"{file}, line 1")
    if cells is None:
        raise UserError(f"{file}, line 1: a double quote begins a cell and none on this line ends it; correct it")
    return cells


def first_line(file: Path) -> str:
    """Line 1 of a text file without its end. Raises UserError: it is blank, or the file is not text."""
    with open_text(file) as stream:
        line = stream.readline()
    if not line.strip():
        raise UserError(f"{file}, line 1 is empty; expected a header or data")
    return line.rstrip("\r\n")
