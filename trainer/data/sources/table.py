"""Any CSV, TSV or Parquet file with a user, an item and a time column."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from trainer.data.sources.base import Log, make_log
from trainer.data.sources.parquet import read_parquet
from trainer.data.sources.reading import first_line, read_columns


class Table:
    """`mealrec prepare table`."""

    help = "any CSV, TSV or Parquet file with a user, an item and a time column"
    example = "mealrec prepare table --file log.parquet --user user --item video --time seen_at --out data/log"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--file", type=Path, required=True, help="CSV, TSV or Parquet")
        for column in ("user", "item", "time"):
            parser.add_argument(f"--{column}", required=True, metavar="COLUMN", help=f"name of the {column} column")

    def read(self, args: argparse.Namespace) -> Log:
        return read_table(args.file, args.user, args.item, args.time)


def read_table(file: Path, user: str, item: str, time: str) -> Log:
    """A CSV, TSV or Parquet file with the columns `user`, `item`, `time` (numbers or, in Parquet, datetimes)."""
    names = {"user": user, "item": item, "time": time}
    if file.suffix.lower() in (".parquet", ".pq"):
        return make_log(_parquet(file, names), file)
    separator = "\t" if file.suffix.lower() == ".tsv" or "\t" in first_line(file) else ","
    return make_log(read_columns(file, separator, names), file)


def _parquet(file: Path, names: dict[str, str]) -> pl.DataFrame:
    frame = read_parquet(file, names.values())
    ids = [pl.col(names[ours]).cast(pl.String).alias(ours) for ours in ("user", "item")]
    return frame.select(*ids, pl.col(names["time"]).alias("time"), "_line")
