"""A source of interactions: what it must offer, and the log that it gives.

Nothing is dropped without being counted; what is malformed is refused with its file and line.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from trainer.data.sources.checks import refuse_null
from trainer.data.sources.times import whole_times


@dataclass(frozen=True)
class Log:
    """Interactions. frame: user (String), item (String), time (Int64), and behaviours (UInt8) where there are any.

    Rows of equal time are in the order of the source; fractions of a second decide before it does.
    titles: item -> title. behaviour_names: what the bits of behaviours mean, lowest first. dropped: reason -> count.
    files: what was read.
    """

    frame: pl.DataFrame
    files: tuple[Path, ...]
    titles: dict[str, str] = field(default_factory=dict)
    behaviour_names: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """A format of interaction logs: `mealrec prepare NAME` for the name under which it is registered.

    help: what it reads, in words. example: a whole command, for the help.
    """

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this source has."""
        ...

    def read(self, args: argparse.Namespace) -> Log:
        """The log that these options name. Raises UserError: what is wrong, with file and line, and what to do."""
        ...


def make_log(frame: pl.DataFrame, file: Path, behaviours: bool = False) -> Log:
    """The log of a frame with user, item and time (numbers, text of numbers, or datetimes) read from `file`.

    Rows that are equal in all three are kept once and counted; their `behaviours` (UInt8, bits) are joined.
    `_line`: the line of each row in the file; without it rows count as lines.
    Raises UserError with the line: an id that is missing, a time that is none.
    """
    if "_line" not in frame.columns:
        frame = frame.with_columns(_line=pl.int_range(1, pl.len() + 1))
    for column in ("user", "item"):
        refuse_null(frame, column, file)
    frame = whole_times(frame, file).sort("_exact", maintain_order=True)
    key = ["user", "item", "time"]
    if behaviours:
        unique = frame.group_by(key, maintain_order=True).agg(pl.col("behaviours").bitwise_or())
    else:
        unique = frame.select(key).unique(maintain_order=True)
    return Log(unique, (file,), dropped={"duplicate rows": len(frame) - len(unique)})


def titles_of(frame: pl.DataFrame) -> dict[str, str]:
    """The first title of each item that has one."""
    known = frame.filter(pl.col("title").is_not_null()).unique("item", keep="first", maintain_order=True)
    return dict(known.select("item", "title").iter_rows())
