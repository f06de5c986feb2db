"""Any CSV, TSV or Parquet file with a user, an item and a time column, and titles beside it or in it."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl

from models.errors import UserError
from trainer.data.sources.base import Log, first_titles, make_log
from trainer.data.sources.items import read_items
from trainer.data.sources.parquet import is_parquet, joined, read_part
from trainer.data.sources.parts import Part, parts_of
from trainer.data.sources.reading import read_columns, separator_of
from trainer.data.sources.times import add_time_format
from trainer.local_path import local_path


@dataclass(frozen=True)
class LogInParts:
    """A log that `trainer.data.partitioned` reads part by part.

    titles: of the items of the log, given as their ids, the first of them first; None: they are in the log, or nowhere.
    title_files: what `titles` reads.
    """

    table: TableFiles
    titles: Callable[[pl.Series], dict[str, str]] | None = None
    title_files: tuple[Path, ...] = ()


@runtime_checkable
class SourceInParts(Protocol):
    """A source whose log may be read in parts."""

    def in_parts(self, args: argparse.Namespace) -> LogInParts:
        """The log that these options name, not read yet. Raises UserError: nothing is there."""
        ...


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

    def in_parts(self, args: argparse.Namespace) -> LogInParts:
        table = TableFiles.of(args.file, args.user, args.item, args.time, args.title, args.time_format)
        titles = None if args.titles is None else functools.partial(_titles_of, args.titles, args.item)
        return LogInParts(table, titles, () if args.titles is None else (args.titles,))


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
    table = TableFiles.of([files] if isinstance(files, Path) else files, user, item, time, title, time_format)
    read = [table.read(part) for part in range(len(table.parts))]
    frame = joined({part.name: frame for part, (frame, _) in zip(table.parts, read, strict=True)}, table.name)
    log = make_log(frame, table.first, time_format, files=table.local_files)
    digests = {part.name: digest for part, (_, digest) in zip(table.parts, read, strict=True) if digest}
    return replace(log, digests=digests)


@dataclass(frozen=True)
class TableFiles:
    """The files of a log, not read yet. names: our name of a column -> theirs. sources: as the user gave them."""

    sources: tuple[str, ...]
    parts: tuple[Part, ...]
    names: Mapping[str, str]
    time_format: str | None

    @classmethod
    def of(
        cls, files: Sequence[str | Path], user: str, item: str, time: str, title: str | None, time_format: str | None
    ) -> TableFiles:
        """The arguments are those of `read_table`. Raises UserError: nothing is there."""
        sources = tuple(str(file) for file in files)
        names = {"user": user, "item": item, "time": time} | ({"title": title} if title else {})
        return cls(sources, tuple(parts_of(sources)), names, time_format)

    @property
    def name(self) -> str:
        """What the log is, for messages."""
        return " ".join(self.sources)

    @property
    def first(self) -> Path:
        """What messages name where no single part is to blame."""
        return Path(self.sources[0])

    @property
    def local_files(self) -> list[Path]:
        return [part.path for part in self.parts if part.path is not None]

    def read(self, part: int) -> tuple[pl.DataFrame, str | None]:
        """Columns `names` of one part, and the place of each row in it; and the SHA-256 of what was at a URL.

        It may have no rows where there are several parts. Raises UserError, as `Part.read`.
        """
        return self.parts[part].read(lambda file: _frame(file, self.names, several=len(self.parts) > 1))

    def read_marked(self, part: int, types: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The rows of one part as `joined` gives them: cast to `types`, with `_file` where there are several parts."""
        frame = self.read(part)[0]
        frame = frame.cast(pl.Schema({name: types[name] for name in frame.columns}))
        return frame.with_columns(_file=pl.lit(self.parts[part].name)) if len(self.parts) > 1 else frame


def _frame(file: Path, names: Mapping[str, str], several: bool) -> pl.DataFrame:
    """The columns `names` of one file, and the place of each row in it: `_line`, of Parquet `_row`."""
    if is_parquet(file):
        frame = read_part(file, dict.fromkeys(names.values()))
        return frame.select(*(pl.col(theirs).alias(ours) for ours, theirs in names.items()), "_row")
    separator = "\t" if file.suffix.lower() == ".tsv" else separator_of(file, names.values())
    return read_columns(file, separator, dict(names), part=several)


def with_titles(log: Log, titles: Path, item: str = "item") -> Log:
    """The log with the titles in a table of items. item: a name that the column of ids may have instead of `item`.

    Raises UserError: as `read_items`, or where no item of the log has a title there.
    """
    there = log.frame["item"].unique(maintain_order=True).cast(pl.String)
    return replace(log, files=(*log.files, titles), titles=_titles_of(titles, item, there))


def _titles_of(titles: Path, item: str, there: pl.Series) -> dict[str, str]:
    """there: the items of the log, the first of them first."""
    found = first_titles(read_items(titles, ("item", item), repeated=True))
    if not found:
        raise UserError(f"{titles} has no titles: it needs the columns item and title")
    if not there.is_in(list(found)).any():
        raise UserError(
            f"{titles} has no title of any item in the log: ids there are like {next(iter(found))!r}, in the log like "
            f"{there[0]!r}"
        )
    return found
