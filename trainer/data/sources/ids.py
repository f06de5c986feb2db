"""Ids, read the same from every kind of file: "101", 101 and 101.0 are one item, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import refuse_null, refuse_where

#: from here on, not every whole number is a float
_EXACT = 2.0**53
_POINT_ZERO = r"^-?\d+\.0+$"


def with_ids(frame: pl.DataFrame, column: str, file: Path, whole: bool | None = None) -> pl.DataFrame:
    """`frame` with the ids in `column` as strings without surrounding blanks.

    Whole floats below 2^53 are integers; so is text of which every entry ends in .0, as pandas writes such floats.
    whole: whether every entry does, as `all_end_in_zero` says of a whole log; None: by the entries of `frame`.
    Raises UserError with the line: an id that is missing, empty, another float or not text; or a column of a type that
    holds no ids.
    """
    dtype = frame.schema[column]
    if dtype.is_float():
        frame = _floats(frame, column, file)
    frame = with_text(frame, column, file)
    refuse_null(frame, column, file)
    if whole is None:
        whole = not dtype.is_integer() and _all_end_in_zero(frame[column])
    return frame.with_columns(pl.col(column).str.replace(r"\.0+$", "")) if whole else frame


def all_end_in_zero(column: pl.Series) -> bool:
    """Whether a column of ids, as it was read, is text of which every entry ends in .0."""
    if column.dtype.is_numeric():
        return False
    return _all_end_in_zero(column.cast(pl.String, strict=False).str.strip_chars())


def _all_end_in_zero(text: pl.Series) -> bool:
    return bool(text.str.contains(_POINT_ZERO).all())


def as_id(value: object) -> str:
    """One value as the id that `with_ids` makes of it; "" for null. What is no id becomes text that no item has."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def with_text(frame: pl.DataFrame, column: str, file: Path) -> pl.DataFrame:
    """`frame` with `column` as strings without surrounding blanks, null where nothing is left.

    Raises UserError: bytes that are not UTF-8 (with the line), a type that is neither text nor numbers.
    """
    dtype = frame.schema[column]
    if dtype == pl.Binary:
        bad = pl.Series("_bad", [value is not None and not _is_text(value) for value in frame[column]])
        refuse_where(frame.with_columns(bad), pl.col("_bad"), column, file, "is not UTF-8")
    elif not (dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise UserError(f"{file}: the column {column} is {dtype}; give text or whole numbers")
    stripped = pl.col(column).cast(pl.String).str.strip_chars()
    return frame.with_columns(pl.when(stripped != "").then(stripped).alias(column))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _floats(frame: pl.DataFrame, column: str, file: Path) -> pl.DataFrame:
    value = pl.col(column).cast(pl.Float64)
    refuse_null(frame, column, file)
    whole = value.is_finite() & (value == value.round()) & (value.abs() < _EXACT)
    refuse_where(frame, ~whole, column, file, "is not an id; give text or whole numbers below 2^53")
    return frame.with_columns(value.cast(pl.Int64).alias(column))
