"""Parquet files of users."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.checks import require_column


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
