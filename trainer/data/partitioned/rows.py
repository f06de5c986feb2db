"""One partition: all rows of some users. Each step is a pure function of files in a folder, so that it may run in any
process that sees the folder, and again where that process died.

Users have numbers within their partition, items numbers within the log. A row's key is its exact time and its place in
the log: rows in the order of their keys are in the order that a log in memory has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer.data.kept import dense
from trainer.data.partitioned.parts import gathered
from trainer.data.sources.base import firsts
from trainer.data.sources.times import Span

Ints = NDArray[np.int64]
KEY = ("_exact", "position")
_VALUES = ("time", *KEY)


@dataclass(frozen=True)
class Keys:
    """Keys of first rows, of something numbered. number, position: (N,) int64; exact: (N,) int64 or float64."""

    number: Ints
    exact: NDArray[Any]
    position: Ints

    def order(self) -> Ints:
        """What sorts them."""
        return np.lexsort((self.position, self.exact))


@dataclass(frozen=True)
class Files:
    """The files of one partition in the folder of a preparation."""

    folder: Path
    partition: int

    def path(self, name: str) -> Path:
        return self.folder / f"rows-{self.partition:06}.{name}"

    def save(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            np.save(self.path(f"{name}.npy"), array, allow_pickle=False)

    def load(self, *names: str) -> list[NDArray[Any]]:
        return [np.load(self.path(f"{name}.npy"), allow_pickle=False) for name in names]


@dataclass(frozen=True)
class Gathered:
    """rows: without `duplicates`. span: of their times; None where the partition has no rows."""

    rows: int
    duplicates: int
    span: Span | None


def gather(folder: Path, parts: Sequence[int], partition: int) -> Gathered:
    """Order the rows of a partition, without those that are there twice; write them, their users and their items."""
    frame = gathered(folder, parts, partition).with_columns(pl.col("user", "item").cast(pl.Categorical))
    frame = frame.sort("_exact", maintain_order=True)
    unique = frame.filter(firsts(frame))
    files = Files(folder, partition)
    _write_users(files, unique)
    _write_items(files, frame, unique)
    files.save(**{f"all_{name}": unique[name].to_numpy() for name in _VALUES})
    return Gathered(len(unique), len(frame) - len(unique), Span.of(unique) if len(unique) else None)


def _write_users(files: Files, unique: pl.DataFrame) -> None:
    """Names, and of each the key of the first row and the number of rows."""
    user, names = dense(unique["user"])
    first = np.unique(user, return_index=True)[1]
    rows = np.bincount(user, minlength=len(names))
    table = unique[first].select(KEY).with_columns(names.alias("user"), pl.Series("rows", rows))
    table.write_parquet(files.path("users.parquet"))
    files.save(all_user=user.astype(np.int32))


def _write_items(files: Files, frame: pl.DataFrame, unique: pl.DataFrame) -> None:
    """Names, and of each the key of the first row, and the first title with its key, where there are titles."""
    item, names = dense(unique["item"])
    first = np.unique(item, return_index=True)[1]
    table = unique[first].select(KEY).with_columns(names.alias("item"))
    if "title" in frame.columns:  # repeated rows may have the title that the first of them lacks
        titles = frame.drop_nulls("title").unique("item", keep="first", maintain_order=True)
        titles = titles.select(pl.col("item").cast(pl.String), "title", title_exact="_exact", title_position="position")
        table = table.join(titles, on="item", how="left", maintain_order="left")
    table.write_parquet(files.path("items.parquet"))
    files.save(all_item=item.astype(np.int32))


def place(folder: Path, catalogue: Path, partition: int) -> tuple[Ints, Ints]:
    """Give items their numbers in the log (rows of `catalogue`), and keep the rows of the users that `alive` has.

    Returns the items of these rows, and how often each is there.
    """
    files = Files(folder, partition)
    numbers = pl.read_parquet(catalogue, glob=False).with_row_index("number")
    names = pl.read_parquet(files.path("items.parquet"), columns=["item"], glob=False)
    to_log = names.join(numbers, on="item", how="left", maintain_order="left")["number"].to_numpy().astype(np.int32)
    user, here, alive = files.load("all_user", "all_item", "alive")
    keep = alive[user]
    item = to_log[here[keep]]
    files.save(user=user[keep], item=item)
    for name in _VALUES:
        files.save(**{name: files.load(f"all_{name}")[0][keep]})
    return _counted(item)


def take_core(
    folder: Path, user_min: int, before: str | None, after: str, partition: int
) -> tuple[int, int, Ints, Ints]:
    """Drop the rows of items that are no longer in the core, then users with fewer than `user_min` rows.

    before, after: names of the rows that are left; None: all. `AFTER.npy` in `folder` says which items are in the core.
    Returns how many rows and users are left; and the items of the rows dropped now, and how many of each.
    """
    files = Files(folder, partition)
    user, item = files.load("user", "item")
    there = np.arange(len(user)) if before is None else np.flatnonzero(files.load(before)[0])
    alive = np.load(folder / f"{after}.npy", mmap_mode="r", allow_pickle=False)
    left = there[alive[item[there]]]
    enough = np.bincount(user[left], minlength=1) >= user_min
    left = left[enough[user[left]]]
    keep = np.zeros(len(user), np.bool_)
    keep[left] = True
    files.save(**{after: keep})
    dropped = there[~keep[there]]
    return len(left), len(np.unique(user[left])), *_counted(item[dropped])


@dataclass(frozen=True)
class Firsts:
    """Of the rows that a core keeps. rows: (number of users,) rows of each; users, items: keys of their first rows."""

    rows: Ints
    users: Keys
    items: Keys


def first_rows(folder: Path, kept: str, partition: int) -> Firsts:
    """The first row of each user and item of the rows that `kept` names."""
    files = Files(folder, partition)
    user, item, exact, position, keep = files.load("user", "item", *KEY, kept)
    user, item, exact, position = (array[keep] for array in (user, item, exact, position))
    users, first, rows = np.unique(user, return_index=True, return_counts=True)
    items, first_item = np.unique(item, return_index=True)
    return Firsts(
        rows.astype(np.int64),
        Keys(users.astype(np.int64), exact[first], position[first]),
        Keys(items.astype(np.int64), exact[first_item], position[first_item]),
    )


def _counted(items: NDArray[Any]) -> tuple[Ints, Ints]:
    numbers, counts = np.unique(items, return_counts=True)
    return numbers.astype(np.int64), counts.astype(np.int64)
