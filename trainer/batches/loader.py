"""Batches from a prepared dataset: rows by random access to the sequences, or streamed from row shards.

Both give the same `Batch`; where the sequences are (device, host, shards) is decided once, when they are loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from models.contract import Batch, ItemTable
from trainer.batches.item_table import load_table, table_bytes
from trainer.batches.noisy_table import NoisyTable
from trainer.batches.plan import Rows, ShuffledOrder, WindowOrder
from trainer.batches.stream import ShardWindows
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import Split, target_positions

#: where content and sequences are: in memory of the device, in memory-mapped files, or (training rows) in shards
Placement = Literal["resident", "mmap", "stream"]
Loader = Literal["auto"] | Placement


def host_memory_available() -> int:
    """Bytes of memory that a new process can have without swapping."""
    return int(psutil.virtual_memory().available)


def choose_placement(loader: Loader, dataset: Dataset, device: torch.device) -> Placement:
    """The placement asked for; auto is resident where content and sequences take at most half of the free memory."""
    if loader != "auto":
        return loader
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory_available()
    needed = table_bytes(dataset.manifest) + 8 * (len(dataset.items) + 2 * len(dataset.offsets))
    return "resident" if needed <= free // 2 else "mmap"


@dataclass(frozen=True)
class Sequences:
    """The sequences of all users as tensors (see docs/dataset-format.md), and batches cut from them."""

    offsets: Tensor
    items: Tensor
    row_offsets: Tensor
    behaviours: Tensor | None
    max_length: int

    @staticmethod
    def of(dataset: Dataset, device: torch.device) -> Sequences:
        """Sequences on `device`; on the CPU they share the memory-mapped files."""
        arrays = (dataset.offsets, dataset.items, dataset.row_offsets)
        offsets, items, row_offsets = (torch.from_numpy(array).to(device) for array in arrays)
        behaviours = None if dataset.behaviours is None else torch.from_numpy(dataset.behaviours).to(device)
        return Sequences(offsets, items, row_offsets, behaviours, dataset.manifest.max_length)

    def training_batch(self, rows: Tensor, epoch: int) -> Batch:
        """The training rows `rows` (B,); noise is keyed by (row, epoch)."""
        user = torch.searchsorted(self.row_offsets, rows, right=True) - 1
        position = self.offsets[user] + (rows - self.row_offsets[user]) + 1
        return self._batch(user, position, training_keys(rows, epoch, self.row_offsets[-1]))

    def evaluation_batch(self, user: Tensor, position: Tensor) -> Batch:
        """The targets at `position` (B,) of `user` (B,); noise is keyed by user."""
        return self._batch(user, position, user)

    def _batch(self, user: Tensor, position: Tensor, key: Tensor) -> Batch:
        length = torch.clamp(position - self.offsets[user], max=self.max_length)
        column = torch.arange(self.max_length, device=position.device)
        filled = column < length[:, None]
        index = torch.where(filled, (position - length)[:, None] + column, 0)
        history = torch.where(filled, self.items[index].long(), 0)
        behaviours = torch.zeros_like(history, dtype=torch.uint8)
        if self.behaviours is not None:
            behaviours = torch.where(filled, self.behaviours[index], 0)
        return Batch(user, history, length, self.items[position].long(), key, behaviours)


def training_keys(rows: Tensor, epoch: int, total: Tensor | int) -> Tensor:
    """(B,) noise keys, distinct per (training row, epoch)."""
    return rows + epoch * total


class TrainingRows(ABC):
    """Training rows by their position in an epoch's order."""

    count: int

    @abstractmethod
    def batch(self, epoch: int, positions: Rows) -> Batch:
        """The rows at `positions` of the epoch, on the model's device."""

    @abstractmethod
    def row_ids(self, epoch: int, positions: Rows) -> Rows:
        """Which training rows those are (for reports)."""


#: an order of up to so many rows is computed for a whole epoch at once: 8 bytes each, on the device of the sequences
_ROWS_AT_ONCE = 1 << 27


class RandomAccess(TrainingRows):
    """Rows computed from the sequences, resident on the device or memory-mapped on the host."""

    def __init__(self, dataset: Dataset, sequences: Sequences, device: torch.device, seed: int) -> None:
        self.count = dataset.manifest.train_rows
        self._order = ShuffledOrder(self.count, seed)
        self._sequences, self._device = sequences, device
        self._epoch, self._of_epoch = -1, torch.zeros(0, dtype=torch.int64)

    def batch(self, epoch: int, positions: Rows) -> Batch:
        return self._sequences.training_batch(self._rows(epoch, positions), epoch).to(self._device)

    def row_ids(self, epoch: int, positions: Rows) -> Rows:
        return self._order(epoch, positions)

    def _rows(self, epoch: int, positions: Rows) -> Tensor:
        """(B,) `row_ids` on the device of the sequences. Where that is a GPU, a step then needs no copy to it."""
        device = self._sequences.items.device
        if self.count > _ROWS_AT_ONCE:
            return torch.from_numpy(self.row_ids(epoch, positions)).to(device, non_blocking=True)
        if epoch != self._epoch:
            self._of_epoch = self._order.on_device(epoch, torch.arange(self.count, device=device))
            self._epoch = epoch
        first, count = int(positions[0]), len(positions)
        if np.array_equal(positions, np.arange(first, first + count)):  # always, for the share of a plan
            return self._of_epoch[first : first + count]
        return self._of_epoch[torch.from_numpy(positions).to(device)]


class Streamed(TrainingRows):
    """Rows read from WebDataset shards, a window of shards at a time, in the plan's order."""

    def __init__(self, dataset: Dataset, device: torch.device, window: int, seed: int) -> None:
        self._windows = ShardWindows(dataset, window, seed)
        self.count = dataset.manifest.train_rows
        self._device = device

    @property
    def order(self) -> WindowOrder:
        return self._windows.order

    def batch(self, epoch: int, positions: Rows) -> Batch:
        row, columns = self._windows.take(epoch, positions)
        user, history, length, target = (torch.from_numpy(column).long() for column in columns[:4])
        key = training_keys(torch.from_numpy(row), epoch, self.count)
        behaviours = torch.from_numpy(columns[4]) if len(columns) > 4 else torch.zeros_like(history, dtype=torch.uint8)
        return Batch(user, history, length, target, key, behaviours).to(self._device)

    def row_ids(self, epoch: int, positions: Rows) -> Rows:
        return self.order(epoch, positions)


@dataclass(frozen=True)
class Loaded:
    """Everything a worker reads from: item content, training rows, evaluation rows."""

    dataset: Dataset
    placement: Placement
    table: ItemTable
    training_rows: TrainingRows
    sequences: Sequences
    device: torch.device

    def evaluation_batches(self, split: Split, users: Rows, batch_size: int) -> Iterator[Batch]:
        """Batches of `users` (their rows) with the targets of `split`, on the model's device."""
        position = target_positions(np.asarray(self.dataset.offsets), split)
        for start in range(0, len(users), batch_size):
            part = users[start : start + batch_size]
            user, at = (torch.from_numpy(x).to(self.sequences.items.device) for x in (part, position[part]))
            yield self.sequences.evaluation_batch(user, at).to(self.device)


def load(
    dataset: Dataset,
    device: torch.device,
    *,
    seed: int,
    loader: Loader = "auto",
    window: int = 4,
    noise: float = 0.0,
) -> Loaded:
    """Open the item table and the rows of `dataset` for a model on `device`.

    seed: of the order of the rows and of the noise. loader: see `choose_placement`. window: shards shuffled together by
    "stream". noise: see `NoisyTable`; 0: the content as it is stored.
    """
    placement = choose_placement(loader, dataset, device)
    table = load_table(dataset, device, resident=placement == "resident")
    if noise:
        table = NoisyTable(table, noise, seed)
    sequences = Sequences.of(dataset, device if placement == "resident" else torch.device("cpu"))
    rows: TrainingRows
    if placement == "stream":
        rows = Streamed(dataset, device, window, seed)
    else:
        rows = RandomAccess(dataset, sequences, device, seed)
    return Loaded(dataset, placement, table, rows, sequences, device)
