"""Any CSV, TSV or Parquet file with a user, an item and a time column."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.base import Log, first_line, make_log, read_columns, require_column


def read_table(file: Path, user: str, item: str, time: str) -> Log:
    """A CSV, TSV or Parquet file with the columns `user`, `item`, `time` (numbers or, in Parquet, datetimes)."""
    names = {"user": user, "item": item, "time": time}
    if file.suffix.lower() in (".parquet", ".pq"):
        return make_log(_parquet(file, names), file)
    separator = "\t" if file.suffix.lower() == ".tsv" or "\t" in first_line(file) else ","
    return make_log(read_columns(file, separator, names), file)


def _parquet(file: Path, names: dict[str, str]) -> pl.DataFrame:
    try:
        header = pl.read_parquet_schema(file)
        for name in names.values():
            require_column(file, name, header)
        frame = pl.read_parquet(file, columns=list(dict.fromkeys(names.values())))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({error})") from None
    if frame.is_empty():
        raise UserError(f"{file} has no rows; is it the right file?")
    for name in (names["user"], names["item"]):
        if frame.schema[name].is_nested():
            raise UserError(f"{file}: column {name!r} is {frame.schema[name]}; ids are text or numbers")
    ids = [pl.col(names[ours]).cast(pl.String).alias(ours) for ours in ("user", "item")]
    return frame.select(*ids, pl.col(names["time"]).alias("time"), _line=pl.int_range(1, pl.len() + 1))
