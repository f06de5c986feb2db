"""Batches from a prepared dataset: rows by random access to the sequences, or streamed from row shards.

Both give the same `Batch`; where the sequences are (device, host, shards) is decided once, when they are loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from models.contract import Batch, ItemTable
from models.errors import UserError
from trainer.batches.item_table import load_table, table_bytes
from trainer.batches.plan import Rows, ShuffledOrder, WindowOrder
from trainer.batches.stream import ShardWindows
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import Split, target_positions

#: where content and sequences are: in memory of the device; sequences there, and content in host memory that it reads;
#: in memory-mapped files; or (training rows) in shards
Placement = Literal["resident", "pinned", "mmap", "stream"]
Loader = Literal["auto"] | Placement


def host_memory_available() -> int:
    """Bytes of memory that a new process can have without swapping."""
    return int(psutil.virtual_memory().available)


def choose_placement(loader: Loader, dataset: Dataset, device: torch.device) -> Placement:
    """The placement asked for; auto is the first of resident, pinned (for a GPU) and mmap that takes at most half of
    what is free, of each kind of memory.

    Raises UserError: pinned without a GPU.
    """
    if loader == "pinned" and device.type == "cpu":
        raise UserError("data.loader=pinned is for a GPU; a CPU has resident and mmap")
    if loader != "auto":
        return loader
    content, sequences = table_bytes(dataset.manifest), 8 * (len(dataset.items) + 2 * len(dataset.offsets))
    if device.type == "cpu":
        return "resident" if content + sequences <= host_memory_available() // 2 else "mmap"
    free = torch.cuda.mem_get_info(device)[0]
    if content + sequences <= free // 2:
        return "resident"
    return "pinned" if sequences <= free // 2 and content <= host_memory_available() // 2 else "mmap"


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

    def lengths(self, rows: Tensor) -> Tensor:
        """(B,) int64 lengths of the histories of training rows."""
        user = torch.searchsorted(self.row_offsets, rows, right=True) - 1
        return (rows - self.row_offsets[user] + 1).clamp(max=self.max_length)

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


def _with_tokens(batch: Batch, tokens: int) -> Batch:
    """`batch` that has room for so many tokens, rounded up to one of a few numbers: each is a shape of its own.

    Where that leaves out little padding, no room is set: whole rows are simpler for a GPU.
    """
    places = batch.history.numel()
    grain = max(1, places // _ROOMS)
    room = -(-tokens // grain) * grain
    return replace(batch, tokens=room if room <= _MOST_ROOM * places else 0)


class TrainingRows(ABC):
    """Training rows by their position in an epoch's order."""

    count: int

    @abstractmethod
    def batch(self, epoch: int, positions: Rows) -> Batch:
        """The rows at `positions` of the epoch, on the model's device."""

    @abstractmethod
    def row_ids(self, epoch: int, positions: Rows) -> Rows:
        """Which training rows those are (for reports)."""


#: numbers of tokens for which a batch of one size can have room, and the largest share of its places that is worth it
_ROOMS, _MOST_ROOM = 32, 0.8

#: an order of up to so many rows is computed for a whole epoch at once: 8 bytes each, on the device of the sequences
_ROWS_AT_ONCE = 1 << 27


class RandomAccess(TrainingRows):
    """Rows computed from the sequences, resident on the device or memory-mapped on the host."""

    def __init__(self, dataset: Dataset, sequences: Sequences, device: torch.device, seed: int) -> None:
        self.count = dataset.manifest.train_rows
        self._order = ShuffledOrder(self.count, seed)
        self._sequences, self._device = sequences, device
        self._epoch, self._of_epoch = -1, torch.zeros(0, dtype=torch.int64)
        self._most: dict[int, int] = {}

    def batch(self, epoch: int, positions: Rows) -> Batch:
        batch = self._sequences.training_batch(self._rows(epoch, positions), epoch)
        if self._device.type == "cpu":
            return batch
        if batch.history.device.type == "cpu":
            return _with_tokens(batch, int(batch.length.sum())).to(self._device)
        return _with_tokens(batch, self._most_tokens(len(positions)))

    def _most_tokens(self, size: int) -> int:
        """The most real tokens that any `size` rows have that follow each other in this epoch; 0: not known.

        The host waits for it once in an epoch for each size. It is much the same in each epoch.
        """
        if not len(self._of_epoch):
            return 0
        if size not in self._most:
            upto = torch.cat([torch.zeros_like(self._of_epoch[:1]), self._sequences.lengths(self._of_epoch).cumsum(0)])
            self._most[size] = int((upto[size:] - upto[:-size]).amax())
        return self._most[size]

    def row_ids(self, epoch: int, positions: Rows) -> Rows:
        return self._order(epoch, positions)

    def _rows(self, epoch: int, positions: Rows) -> Tensor:
        """(B,) `row_ids` on the device of the sequences. Where that is a GPU, a step then needs no copy to it."""
        device = self._sequences.items.device
        if self.count > _ROWS_AT_ONCE:
            return torch.from_numpy(self.row_ids(epoch, positions)).to(device, non_blocking=True)
        if epoch != self._epoch:
            self._of_epoch = self._order.on_device(epoch, torch.arange(self.count, device=device))
            self._epoch, self._most = epoch, {}
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
        batch = Batch(user, history, length, target, key, behaviours)
        return _with_tokens(batch, int(length.sum())).to(self._device) if self._device.type != "cpu" else batch

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
) -> Loaded:
    """Open the item table and the rows of `dataset` for a model on `device`.

    seed: of the order of the rows. loader: see `choose_placement`. window: shards shuffled together by "stream".
    """
    placement = choose_placement(loader, dataset, device)
    table = load_table(dataset, device, "mmap" if placement == "stream" else placement)
    sequences = Sequences.of(dataset, device if placement in ("resident", "pinned") else torch.device("cpu"))
    rows: TrainingRows
    if placement == "stream":
        rows = Streamed(dataset, device, window, seed)
    else:
        rows = RandomAccess(dataset, sequences, device, seed)
    return Loaded(dataset, placement, table, rows, sequences, device)
