"""What is wrong in a table, with its file and line: the checks that all sources share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from models.errors import UserError


def require_column(file: Path, name: str, header: Iterable[str], text: bool = True) -> str:
    """`name`. Raises UserError with the nearest name where it is not in the header.

    text: the header is the first line of `file`, which Parquet has not.
    """
    columns = list(header)
    if name in columns:
        return name
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(
        f"{file}{', line 1' if text else ''} has no column {name!r}{hint} It has: {', '.join(filter(None, columns))}"
    )


def refuse_null(frame: pl.DataFrame, column: str, file: Path) -> None:
    """Raises UserError with the first line or row where `column` has no value."""
    refuse_where(frame, pl.col(column).is_null(), column, file, "is missing")


def refuse_where(frame: pl.DataFrame, bad: pl.Expr, column: str, file: Path, what: str) -> None:
    """Raises UserError with the first place where `bad` holds. what: the end of "FILE, line N: COLUMN VALUE ...".

    frame: each row has its place in the file: `_line` of a text file or `_row` of Parquet, or both, of mixed parts.
    """
    found = frame.filter(bad).head(1)
    if len(found):
        value = found[column][0]
        shown = "" if value is None else f" {str(value)[:80]!r}"
        where = found["_file"][0] if "_file" in found.columns else file
        places = {kind: found[f"_{kind}"][0] for kind in ("line", "row") if f"_{kind}" in found.columns}
        kind, number = next((kind, number) for kind, number in places.items() if number is not None)
        raise UserError(f"{where}, {kind} {number}: {column}{shown} {what}; correct or remove this {kind}")
