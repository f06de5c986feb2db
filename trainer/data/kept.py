"""What is asked of a preparation, what it keeps of a log, and what it tells of the rest: the same for a log in memory
and for one in partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import console
from models.errors import UserError
from trainer.data.format.manifest import CoreOn


@dataclass(frozen=True)
class PrepareOptions:
    """What is kept of a log, and folders with the vectors of its items. max_length: None chooses it by the log."""

    k_core: int = 4
    core_on: CoreOn = "both"
    sample_users: int | None = None
    seed: int = 0
    max_length: int | None = None
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("k_core", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
        # checked here, before a long import: numpy's generator takes no negative seed
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: give a number of at least 0")

    @property
    def core(self) -> str:
        """The core in words."""
        return f"{self.k_core}-core on {self.core_on}"


@dataclass(frozen=True)
class Kept:
    """The sequences of a dataset. Users and items are numbered by their first row, in the order of exact time.

    user_ids: (U,) String. offsets: (U + 1,); items: (N,) rows 1..I; times, behaviours: (N,).
    """

    user_ids: pl.Series
    item_ids: list[str]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    behaviours: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Selected:
    """What a preparation keeps of a log, and what the dataset says about it.

    dropped: reason -> count. titles: item -> title, where one is known. digests: name of what was read -> SHA-256.
    """

    kept: Kept
    dropped: Mapping[str, int]
    titles: Mapping[str, str]
    behaviour_names: tuple[str, ...]
    digests: dict[str, str]


def by_name(digests: Mapping[Path, str]) -> dict[str, str]:
    """Digests of files by their names; by path where two have one name, as parts in several folders may."""
    names = Counter(path.name for path in digests)
    return {path.name if names[path.name] == 1 else str(path): digest for path, digest in digests.items()}


class Cores(Protocol):
    """The rows that the k-core is taken of. Counts are of users and items."""

    def all_counts(self) -> tuple[int, int]:
        """How many there are."""
        ...

    def core_counts(self, k: int, on: CoreOn) -> tuple[int, int]:
        """How many another core would keep."""
        ...


def lost(
    options: PrepareOptions, sample: tuple[int, int] | None, few: tuple[int, int], outside: tuple[int, int, int]
) -> dict[str, int]:
    """Reason -> count of what a preparation drops. sample: users and interactions that are not in it; few: users with
    fewer than 3 interactions, and their interactions; outside: users, items and interactions outside the core.
    """
    dropped = {}
    if sample is not None:
        dropped["users not in the sample"], dropped["interactions of users not in the sample"] = sample
    dropped["users with fewer than 3 interactions"], dropped["interactions of users with fewer than 3"] = few
    for name, count in zip(("users", "items", "interactions"), outside, strict=True):
        dropped[f"{name} outside the {options.core}"] = count
    return dropped


def nothing_left(rows: int, dropped: Mapping[str, int]) -> UserError:
    """The error where nothing is left of so many rows."""
    words = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    return UserError(
        f"no interaction is left of {rows:,}: {words}; lower --k-core, choose another --core-on, or sample more users"
    )


def warn_of_core(rows: Cores, kept: tuple[int, int], options: PrepareOptions) -> None:
    """Where the core drops half of the users or items: say so before the long work, and what else would keep."""
    users, items = rows.all_counts()
    if 2 * kept[0] > users and 2 * kept[1] > items:
        return
    k, on = options.k_core, options.core_on
    others: list[tuple[int, CoreOn]] = [(k - 1, on), (2, on), (k, "users"), (0, "none")]
    lines = []
    for other_k, other_on in dict.fromkeys(other for other in others if other[0] != 1 and other != (k, on)):
        counts = rows.core_counts(other_k, other_on)
        choice = "--core-on none" if other_on == "none" else f"--k-core {other_k} --core-on {other_on}"
        lines.append(f"  {choice:<28} keeps {counts[0]:,} users and {counts[1]:,} items")
    console.warn(
        f"the {options.core} keeps only {kept[0]:,} of {users:,} users and {kept[1]:,} of {items:,} items. "
        "To keep more, stop this (Ctrl-C) and add one of:\n" + "\n".join(lines)
    )


def dense(column: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """Codes in order of first appearance, and the name of each code (String)."""
    names = column.unique(maintain_order=True)
    if column.dtype == pl.Categorical:  # its codes are in any order, and may have gaps
        there, own = (each.to_physical().to_numpy() for each in (names, column))
        place = np.zeros(int(there.max(initial=0)) + 1, np.int64)
        place[there] = np.arange(len(there))
        return place[own], names.cast(pl.String)
    table = pl.DataFrame({"name": names, "code": np.arange(len(names), dtype=np.int64)})
    joined = column.to_frame("name").join(table, on="name", how="left", maintain_order="left")
    return joined["code"].to_numpy(), names
