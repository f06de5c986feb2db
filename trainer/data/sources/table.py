"""Any CSV, TSV or Parquet file with a user, an item and a time column, and titles beside it or in it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from models.errors import UserError
from trainer.data.sources.base import Log, first_titles, make_log
from trainer.data.sources.items import read_items
from trainer.data.sources.parquet import is_parquet, joined, read_part
from trainer.data.sources.parts import parts_of
from trainer.data.sources.reading import read_columns, separator_of
from trainer.data.sources.times import add_time_format
from trainer.local_path import local_path


class Table:
    """`mealrec prepare table`."""

    help = "any CSV, TSV or Parquet files with a user, an item and a time column: paths, folders, patterns, URLs"
    example = "mealrec prepare table --file log.parquet --user user --item video --time seen_at --out data/log"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--file", action="append", required=True,
            help="CSV, TSV or Parquet, also packed with gzip or zstd; a folder of parts; a quoted pattern such as "
            "'logs/*.csv.gz'; or a URL (s3, gs, http, https); may be given several times",
        )  # fmt: skip
        for column in ("user", "item", "time"):
            parser.add_argument(f"--{column}", required=True, metavar="COLUMN", help=f"name of the {column} column")
        add_time_format(parser)
        titles = parser.add_mutually_exclusive_group()
        titles.add_argument("--title", metavar="COLUMN", help="name of a title column in the same files")
        titles.add_argument(
            "--titles", type=local_path, metavar="FILE", help="a table with columns item (or as --item says) and title"
        )

    def read(self, args: argparse.Namespace) -> Log:
        log = read_table(args.file, args.user, args.item, args.time, args.title, args.time_format)
        return log if args.titles is None else with_titles(log, args.titles, args.item)


def read_table(
    files: Path | Sequence[str | Path],
    user: str,
    item: str,
    time: str,
    title: str | None = None,
    time_format: str | None = None,
) -> Log:
    """CSV, TSV or Parquet files with the columns `user`, `item`, `time`, and `title` where it is given.

    files: as `parts_of` takes them. Times are numbers, text as `with_times` reads it or, in Parquet, datetimes.
    """
    sources = [str(file) for file in ([files] if isinstance(files, Path) else files)]
    parts = parts_of(sources)
    names = {"user": user, "item": item, "time": time} | ({"title": title} if title else {})
    read = {part: part.read(lambda file: _frame(file, names, several=len(parts) > 1)) for part in parts}
    frame = joined({part.name: frame for part, (frame, _) in read.items()}, " ".join(sources))
    local = [part.path for part in parts if part.path is not None]
    log = make_log(frame, Path(sources[0]), time_format, files=local)
    return replace(log, digests={part.name: digest for part, (_, digest) in read.items() if digest})


def _frame(file: Path, names: dict[str, str], several: bool) -> pl.DataFrame:
    """The columns `names` of one file, and the place of each row in it: `_line`, of Parquet `_row`."""
    if is_parquet(file):
        frame = read_part(file, dict.fromkeys(names.values()))
        return frame.select(*(pl.col(theirs).alias(ours) for ours, theirs in names.items()), "_row")
    separator = "\t" if file.suffix.lower() == ".tsv" else separator_of(file, names.values())
    return read_columns(file, separator, names, part=several)


def with_titles(log: Log, titles: Path, item: str = "item") -> Log:
    """The log with the titles in a table of items. item: a name that the column of ids may have instead of `item`.

    Raises UserError: as `read_items`, or where no item of the log has a title there.
    """
    items = read_items(titles, ("item", item), repeated=True)
    found = first_titles(items)
    if not found:
        raise UserError(f"{titles} has no titles: it needs the columns item and title")
    if not log.frame["item"].unique().cast(pl.String).is_in(list(found)).any():
        raise UserError(
            f"{titles} has no title of any item in the log: ids there are like {next(iter(found))!r}, in the log like "
            f"{log.frame['item'][0]!r}"
        )
    return replace(log, files=(*log.files, titles), titles=found)
