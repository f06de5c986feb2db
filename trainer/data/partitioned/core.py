"""The k-core of a log in partitions: items are counted over all of them, users within each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.format.manifest import CoreOn
from trainer.data.partitioned import rows
from trainer.data.selection import core_minima

Ints = NDArray[np.int64]


class Run(Protocol):
    """Does `work` for each unit, perhaps at the same time; the answers in the order of the units."""

    def __call__(self, label: str, work: Any, units: Sequence[int]) -> list[Any]: ...


@dataclass(frozen=True)
class Core:
    """What one core keeps: how many rows, users and items, and the name of the rows."""

    rows: int
    users: int
    items: int
    name: str


@dataclass
class PartitionedRows:
    """The rows that the k-core is taken of, as `rows.place` left them. counts: (I,) rows of each item of the log.

    users: how many have rows.
    """

    folder: Path
    partitions: int
    run: Run
    counts: Ints
    users: int

    def all_counts(self) -> tuple[int, int]:
        return self.users, int((self.counts > 0).sum())

    def core_counts(self, k: int, on: CoreOn) -> tuple[int, int]:
        core = self.core(k, on)
        return core.users, core.items

    def core(self, k: int, on: CoreOn) -> Core:
        """The largest subset in which users and items have enough rows: the same as `k_core`, since there is one."""
        user_min, item_min = core_minima(k, on)
        counts, before, number = self.counts.copy(), None, 0
        alive = counts >= item_min
        while True:
            after = f"core-{k}-{on}-{number}"
            np.save(self.folder / f"{after}.npy", alive, allow_pickle=False)
            work = functools.partial(rows.take_core, self.folder, user_min, before, after)
            found = self.run(f"{k}-core, round {number + 1}", work, range(self.partitions))
            for _, _, items, dropped in found:
                counts[items] -= dropped
            self._remove(before)
            if not (alive & (counts < item_min)).any():
                left, users = (sum(each[n] for each in found) for n in (0, 1))
                return Core(left, users, int((counts > 0).sum()), after)
            alive &= counts >= item_min
            before, number = after, number + 1

    def _remove(self, name: str | None) -> None:
        if name is not None:
            for partition in range(self.partitions):
                rows.Files(self.folder, partition).path(f"{name}.npy").unlink()
