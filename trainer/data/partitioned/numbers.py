"""Users and items of a log in partitions: in the order of their first rows, and numbered by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trainer.data.kept import Kept
from trainer.data.partitioned.rows import KEY, Files, Firsts, Keys
from trainer.data.storage import new_array

Ints = NDArray[np.int64]
#: items that are read from partitions before those that are there several times are joined
_JOINED_AT = 4_000_000


def items_of_log(folder: Path, partitions: int) -> tuple[pl.Series, dict[str, str]]:
    """Names of all items in the order of their first rows, and the first title of each that has one."""
    joined, waiting, titles = pl.DataFrame(), list[pl.DataFrame](), list[pl.DataFrame]()
    for partition in range(partitions):
        found = pl.read_parquet(Files(folder, partition).path("items.parquet"), glob=False)
        if "title" in found.columns:
            titles.append(_first_of([*titles, found.drop_nulls("title")], ["title_exact", "title_position"]))
            del titles[:-1]
        waiting.append(found.select("item", *KEY))
        if partition == partitions - 1 or sum(map(len, waiting)) > max(_JOINED_AT, len(joined)):
            joined, waiting = _first_of([joined, *waiting] if len(joined) else waiting, list(KEY)), []
    return joined["item"], dict(titles[0].select("item", "title").iter_rows()) if titles else {}


def _first_of(tables: Sequence[pl.DataFrame], key: list[str]) -> pl.DataFrame:
    return pl.concat(tables).sort(key).unique("item", keep="first", maintain_order=True)


def users_of_log(folder: Path, partitions: int) -> tuple[Keys, Ints, Ints]:
    """Of all users, partition by partition: keys of their first rows (numbered by partition), their rows, and their
    codes in the order of first rows.
    """
    columns = [*KEY, "rows"]
    tables = [
        pl.read_parquet(Files(folder, p).path("users.parquet"), columns=columns, glob=False) for p in range(partitions)
    ]
    number = np.repeat(np.arange(partitions), [len(table) for table in tables])
    table = pl.concat(tables)
    keys = Keys(number, table["_exact"].to_numpy(), table["position"].to_numpy())
    return keys, table["rows"].cast(pl.Int64).to_numpy(), _ranks(keys.order())


def _ranks(order: Ints) -> Ints:
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def number_all(folder: Path, kept: str, firsts: Sequence[Firsts], item_names: pl.Series) -> Kept:
    """The sequences of what a core keeps, in memory-mapped files in `folder`. kept: as in `rows.first_rows`.

    firsts: of each partition. item_names: of the items of the log.
    """
    items = _first_keys([each.items for each in firsts], len(item_names))
    in_order = items.number[items.order()]
    item_row = np.zeros(len(item_names), np.int32)
    item_row[in_order] = np.arange(1, len(in_order) + 1)
    users = _joined([each.users for each in firsts])
    order = users.order()
    user_row, lengths = _ranks(order), np.concatenate([each.rows for each in firsts])
    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    item_file = new_array(folder / "items.npy", (int(offsets[-1]),), np.int32)
    time_file = new_array(folder / "times.npy", (int(offsets[-1]),), np.int64)
    names, start = [], 0
    for partition, each in enumerate(firsts):
        rows_here = user_row[start : start + len(each.rows)]
        at, item, time = _in_users(Files(folder, partition), kept, offsets[rows_here])
        item_file[at], time_file[at] = item_row[item], time
        here = pl.read_parquet(Files(folder, partition).path("users.parquet"), columns=["user"], glob=False)["user"]
        names.append(here[each.users.number])
        start += len(each.rows)
    return Kept(pl.concat(names)[order], item_names[in_order].to_list(), offsets, item_file, time_file, None)


def _in_users(files: Files, kept: str, starts: Ints) -> tuple[Ints, NDArray[Any], NDArray[Any]]:
    """Where the kept rows of a partition belong in the sequences, their items and times. starts: of its users."""
    user, item, time, keep = files.load("user", "item", "time", kept)
    user, item, time = user[keep], item[keep], time[keep]
    order = np.argsort(user, kind="stable")
    lengths = np.unique(user, return_counts=True)[1]
    within = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within, item[order], time[order]


def _joined(keys: Sequence[Keys]) -> Keys:
    number, exact, position = (
        np.concatenate([getattr(each, name) for each in keys]) for name in ("number", "exact", "position")
    )
    return Keys(number, exact, position)


def _first_keys(keys: Sequence[Keys], count: int) -> Keys:
    """Of the numbers 0..count-1 that are there, the least key of each."""
    exact = np.zeros(count, next((each.exact.dtype for each in keys if len(each.exact)), np.int64))
    position = np.full(count, -1, np.int64)
    for each in keys:
        there_exact, there = exact[each.number], position[each.number]
        earlier = (each.exact < there_exact) | ((each.exact == there_exact) & (each.position < there))
        better = (there < 0) | earlier
        number = each.number[better]
        exact[number], position[number] = each.exact[better], each.position[better]
    number = np.flatnonzero(position >= 0)
    return Keys(number, exact[number], position[number])
