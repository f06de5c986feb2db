"""A source of interactions: what it must offer, and the log that it gives.

Nothing is dropped without being counted; what is malformed is refused with its file and line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from trainer.data.sources.ids import with_ids, with_text
from trainer.data.sources.parquet import parquet_files
from trainer.data.sources.times import Span, TextTimes, collapsed, with_times


@dataclass(frozen=True)
class Log:
    """Interactions. frame: user and item (Categorical, or String), time (Int64), perhaps behaviours (UInt8).

    Rows of equal time are in the order of the source; fractions of a second decide first, and tell repeats apart.
    titles: item -> title. behaviour_names: what the bits of behaviours mean, lowest first. dropped: reason -> count.
    files: what was read. digests: SHA-256 of what was read at URLs. notes: what the user should know before the work
    begins.
    """

    frame: pl.DataFrame
    files: tuple[Path, ...]
    titles: dict[str, str] = field(default_factory=dict)
    behaviour_names: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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


def make_log(
    frame: pl.DataFrame, file: Path, time_format: str | None = None, files: Sequence[Path] | None = None
) -> Log:
    """The log of a frame with user, item and time, and with title and behaviours (UInt8, bits) where it has them.

    ids: text or whole numbers; times: numbers, datetimes or text (`trainer.data.sources.times.with_times`).
    Rows that are equal in user, item and exact time are kept once and counted; their behaviours are joined.
    `_line` or `_row`: the place of each row in its file; without them rows count as lines. file: one file, or a folder
    of parts, for messages. files: what was read, if it is not that.
    Raises UserError with the place: an id that is missing, a time that is none.
    """
    if not {"_line", "_row"} & {*frame.columns}:
        frame = frame.with_columns(_line=pl.int_range(1, pl.len() + 1))
    for step in reading_steps(file, time_format):
        frame = step(frame)
    key = ["user", "item", "time", "_exact"]
    kept = [name for name in (*key, "title", "behaviours") if name in {*frame.columns, "_exact"}]
    # ids as codes, and no column more than is needed: what follows makes several copies of all rows
    frame = frame.select(kept).with_columns(pl.col("user", "item").cast(pl.Categorical))
    frame = frame.sort("_exact", maintain_order=True)
    if "behaviours" in frame.columns:
        unique = frame.group_by(key, maintain_order=True).agg(pl.col("behaviours").bitwise_or())
    else:
        unique = frame.select(key).filter(firsts(frame))
    note = collapsed(Span.of(unique))
    return Log(
        unique.drop("_exact"),
        parquet_files(file) if files is None else tuple(files),
        first_titles(frame) if "title" in frame.columns else {},
        dropped={"duplicate rows": len(frame) - len(unique)},
        notes=(f"{file}: {note}",) if note else (),
    )


@dataclass(frozen=True)
class Written:
    """What the columns of a whole log say together about how each is read; parts of it cannot say it alone.

    types: of the columns, to which those of all parts are cast. whole: columns of ids of which every entry ends in .0.
    times: of times that are text without a format, else None.
    """

    types: dict[str, pl.DataType]
    whole: frozenset[str]
    times: TextTimes | None


def reading_steps(
    file: Path, time_format: str | None, written: Written | None = None
) -> list[Callable[[pl.DataFrame], pl.DataFrame]]:
    """What makes ids, titles and times of the columns user, item, title and time as they were read, in the order in
    which mistakes are told. Each raises UserError with the line.

    written: of the log of which the frame is a part; None: the frame is the whole.
    """

    def title(frame: pl.DataFrame) -> pl.DataFrame:
        return with_text(frame, "title", file) if "title" in frame.columns else frame

    user, item = (None if written is None else name in written.whole for name in ("user", "item"))
    return [
        lambda frame: with_ids(frame, "user", file, user),
        lambda frame: with_ids(frame, "item", file, item),
        title,
        lambda frame: with_times(frame, file, time_format, None if written is None else written.times),
    ]


def firsts(frame: pl.DataFrame) -> pl.Series:
    """Which rows are the first of their user, item and exact time, of rows in the order of time.

    frame: user and item (Categorical), and _exact.

    As `unique` of polars, with a third of its memory: that was the most of a preparation.
    """
    user, item = (frame[name].to_physical().to_numpy() for name in ("user", "item"))
    pair = user.astype(np.uint64) << np.uint64(32) | item
    order = np.argsort(pair, kind="stable")
    pair, exact = pair[order], frame["_exact"].to_numpy()[order]
    first = np.ones(len(frame), np.bool_)
    first[order[1:][(pair[1:] == pair[:-1]) & (exact[1:] == exact[:-1])]] = False
    return pl.Series(first)


def first_titles(frame: pl.DataFrame) -> dict[str, str]:
    """The first title of each item that has one. frame: item and title, as `with_ids` and `with_text` give them."""
    known = frame.select("item", "title").drop_nulls("title").unique("item", keep="first", maintain_order=True)
    return dict(known.iter_rows())
