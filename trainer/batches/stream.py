"""Training rows streamed from WebDataset shards, a window at a time, the next one read ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.batches.plan import Rows, WindowOrder
from trainer.data.format.dataset import Dataset
from trainer.data.format.node_copy import ShardCopies
from trainer.data.format.shards import Shard, read_shard, shard_list

COLUMNS = ("user", "history", "length", "target")
Columns = list[NDArray[Any]]


class ShardWindows:
    """The row shards of a dataset, read in the order of `trainer.batches.plan.WindowOrder`.

    Memory: two windows of rows. Every rank reads every window and takes its own rows from it: rows are small (about
    50 bytes), and what each rank gets is then the same for every world size. From a URL each shard travels to a node
    once: its processes share the copies of three windows (`ShardCopies`).
    """

    def __init__(self, dataset: Dataset, window: int, seed: int) -> None:
        self._shards = shard_list(dataset.source, dataset.manifest, "rows")
        self._copies = ShardCopies(dataset.root, dataset.source)
        self._passed: list[Shard] = []
        self.order = WindowOrder(tuple(dataset.manifest.shards[name].rows for name in _names(dataset)), window, seed)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="row-shards")
        self._windows: dict[tuple[int, int], Future[tuple[Rows, Columns]]] = {}
        self._count = -(-len(self._shards) // window)
        self.columns = (*COLUMNS, "behaviours") if dataset.manifest.behaviours else COLUMNS

    def take(self, epoch: int, positions: Rows) -> tuple[Rows, Columns]:
        """(row numbers, `self.columns`) at `positions` of the epoch's order."""
        numbers, places = self.order.window_of(epoch, positions)
        parts = [
            tuple(column[places[numbers == number]] for column in self._window(epoch, int(number)))
            for number in np.unique(numbers)
        ]
        row, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return row, columns

    def _window(self, epoch: int, number: int) -> tuple[NDArray[Any], ...]:
        """One window's rows in their shuffled order; starts reading the next."""
        wanted = [(epoch, number), (epoch, number + 1) if number + 1 < self._count else (epoch + 1, 0)]
        needed = {shard.source for key in wanted for shard in self._of(*key)}
        for key in [key for key in self._windows if key not in wanted and key < wanted[0]]:
            del self._windows[key]
            # those of the window before it: another worker of the node may be a step behind
            done = [shard for shard in self._passed if shard.source not in needed]
            self._reader.submit(self._copies.remove, done)
            self._passed = self._of(*key)
        for key in wanted:
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._read, *key)
        row, columns = self._windows[epoch, number].result()
        return row, *columns

    def _of(self, epoch: int, number: int) -> list[Shard]:
        """The shards of one window."""
        return [self._shards[int(shard)] for shard in self.order.window_shards(epoch, number)]

    def _read(self, epoch: int, number: int) -> tuple[Rows, Columns]:
        blocks = [block for shard in self._of(epoch, number) for block in read_shard(self._copies.here(shard))]
        row = np.concatenate([block["row"] for block in blocks])
        by_row = np.argsort(row)
        at = by_row[np.searchsorted(row, self.order.window_rows(epoch, number), sorter=by_row)]
        return row[at], [np.concatenate([block[name] for block in blocks])[at] for name in self.columns]


def _names(dataset: Dataset) -> list[str]:
    return dataset.manifest.shard_names("rows")
