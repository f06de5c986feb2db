"""What is wrong in a table, with its file and line: the checks that all sources share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from models.errors import UserError


def require_column(file: Path, name: str, header: Iterable[str]) -> str:
    """`name`. Raises UserError with the nearest name where it is not in the header."""
    columns = list(header)
    if name in columns:
        return name
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"{file}, line 1 has no column {name!r}{hint} It has: {', '.join(filter(None, columns))}")


def refuse_null(frame: pl.DataFrame, column: str, file: Path) -> None:
    """Raises UserError with the first line where `column` has no value."""
    refuse_where(frame, pl.col(column).is_null(), column, file, "is missing")


def refuse_where(frame: pl.DataFrame, bad: pl.Expr, column: str, file: Path, what: str) -> None:
    """Raises UserError with the first line where `bad` holds. what: the end of "FILE, line N: COLUMN VALUE ..."."""
    found = frame.filter(bad).head(1)
    if len(found):
        value = found[column][0]
        shown = "" if value is None else f" {str(value)[:80]!r}"
        where = found["_file"][0] if "_file" in found.columns else file
        raise UserError(f"{where}, line {found['_line'][0]}: {column}{shown} {what}; correct or remove this line")
