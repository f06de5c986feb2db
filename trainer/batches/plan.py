"""Which training rows make up each step: a pure function of (seed, epoch, step), the same for every world size.

The order of an epoch is a pseudorandom permutation evaluated point by point (a Feistel network with cycle walking),
so a plan over a billion rows needs no memory, and going on after a crash needs one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.noise import hash32

Rows = NDArray[np.int64]

_ROUNDS = 8


class Permutation:
    """A pseudorandom permutation of range(size), chosen by `key`, evaluated at any points, on any device."""

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._left, self._right = bits - bits // 2, bits // 2
        self._keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint32).tolist()

    def __call__(self, positions: Tensor) -> Tensor:
        """(N,) int64 image of each position; positions must lie in range(size)."""
        values = self._once(positions)
        outside = (values >= self.size).nonzero().squeeze(1)
        while len(outside):  # cycle walking: at most half of the domain lies outside
            again = self._once(values[outside])
            values[outside] = again
            outside = outside[again >= self.size]
        return values

    def _once(self, values: Tensor) -> Tensor:
        # both halves have at most 32 bits, as int64 has 63 for positions
        left_mask, right_mask = (1 << self._left) - 1, (1 << self._right) - 1
        left, right = values >> self._right, values & right_mask
        for round_, key in enumerate(self._keys):
            if round_ % 2 == 0:
                left = left ^ (hash32(right ^ key) & left_mask)
            else:
                right = right ^ (hash32(left ^ key) & right_mask)
        return (left << self._right) | right


class Order(Protocol):
    """How positions of an epoch map to training rows."""

    def __call__(self, epoch: int, positions: Rows) -> Rows: ...


@dataclass(frozen=True)
class ShuffledOrder:
    """Every row anywhere in the epoch: what random access to the rows allows."""

    rows: int
    seed: int

    def __call__(self, epoch: int, positions: Rows) -> Rows:
        return self.on_device(epoch, torch.from_numpy(positions)).numpy()

    def on_device(self, epoch: int, positions: Tensor) -> Tensor:
        """The rows at `positions` (N,) int64, computed on their device: the same on every kind of device."""
        return Permutation(self.rows, (self.seed, epoch))(positions)


@dataclass(frozen=True)
class WindowOrder:
    """Shards in random order, rows shuffled within windows of `window` shards: what streaming allows.

    shard_rows: rows of each shard, in the order of their names; rows are numbered through all shards.
    """

    shard_rows: tuple[int, ...]
    window: int
    seed: int

    def shards(self, epoch: int) -> Rows:
        """(S,) shard numbers in the order in which the epoch reads them."""
        return Permutation(len(self.shard_rows), (self.seed, epoch, 1))(torch.arange(len(self.shard_rows))).numpy()

    def window_of(self, epoch: int, positions: Rows) -> tuple[Rows, Rows]:
        """(window number, place within the window's shuffled rows) of each position of the epoch."""
        starts = self._window_starts(epoch)
        number = np.searchsorted(starts, positions, side="right") - 1
        return number, positions - starts[number]

    def window_rows(self, epoch: int, number: int) -> Rows:
        """Row numbers of one window, shuffled."""
        rows, starts = np.array(self.shard_rows), np.concatenate([[0], np.cumsum(self.shard_rows)])
        shards = self.window_shards(epoch, number)
        within = np.concatenate([np.arange(starts[s], starts[s] + rows[s]) for s in shards])
        shuffled: Rows = Permutation(len(within), (self.seed, epoch, 2, number))(torch.arange(len(within))).numpy()
        return within[shuffled]

    def window_shards(self, epoch: int, number: int) -> Rows:
        """Shard numbers of one window, in reading order."""
        return self.shards(epoch)[number * self.window : (number + 1) * self.window]

    def _window_starts(self, epoch: int) -> Rows:
        sizes = np.array(self.shard_rows)[self.shards(epoch)]
        return np.concatenate([[0], np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), self.window)))[:-1]])

    def __call__(self, epoch: int, positions: Rows) -> Rows:
        numbers, places = self.window_of(epoch, positions)
        rows = np.empty(len(positions), np.int64)
        for number in np.unique(numbers):
            chosen = numbers == number
            rows[chosen] = self.window_rows(epoch, int(number))[places[chosen]]
        return rows


@dataclass(frozen=True)
class Plan:
    """Steps of an epoch over `rows` training rows in global batches of `batch_size`; the last batch may be smaller."""

    rows: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of one epoch, the same on every rank."""
        return -(-self.rows // self.batch_size)

    def positions(self, step: int) -> Rows:
        """Positions, in the epoch's order, of the global batch of `step`."""
        return np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.rows), dtype=np.int64)

    def share(self, step: int, rank: int, world: int, accumulation: int) -> list[tuple[Rows, float]]:
        """`accumulation` micro-batches of one rank, each with its weight in the mean over the global batch.

        Weights over all ranks and micro-batches sum to 1. A rank without rows of a small last batch computes one row
        with weight 0, so that every rank takes part in every collective.
        """
        positions = self.positions(step)
        parts = np.array_split(positions, world * accumulation)[rank * accumulation : (rank + 1) * accumulation]
        return [(part, len(part) / len(positions)) if len(part) else (positions[:1], 0.0) for part in parts]
