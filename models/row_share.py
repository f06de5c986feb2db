"""Which rows of a table of items a worker holds where they are divided among workers (`engine.item_rows=sharded`).

Item r is on worker (r - 1) mod W, so that frequent items, which often have neighbouring rows, are spread over all. Each
worker has the padding row, too, as row 0: its share is a table like the whole one, with fewer items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: rows that are drawn at a time; torch draws numbers in groups of 16, so parts of a multiple give the same numbers
_DRAWN = 1 << 16
_GROUP = 16


@dataclass(frozen=True)
class RowShare:
    """The share of worker `rank` of `size` workers in tables of `items` rows, padding row 0 included."""

    rank: int
    size: int
    items: int

    @property
    def count(self) -> int:
        """Rows of this share, padding row 0 included."""
        return 1 + len(range(1 + self.rank, self.items, self.size))

    def of_worker(self, rank: int) -> RowShare:
        """The share of another worker."""
        return RowShare(rank, self.size, self.items)

    def owner(self, rows: Tensor) -> Tensor:
        """The worker that holds each of these item rows (int64, any shape); of padding, the last one."""
        return (rows - 1) % self.size

    def local(self, rows: Tensor) -> Tensor:
        """The places of item rows (int64, any shape) in the share of the worker that holds them; of padding, 0."""
        return (rows + self.size - 1) // self.size

    def rows(self, local: Tensor) -> Tensor:
        """The item rows at places (int64, any shape) of this share: the inverse of `local`; padding is 0."""
        return torch.where(local > 0, 1 + self.rank + (local - 1) * self.size, 0)

    def of(self, whole: Tensor) -> Tensor:
        """(count, ...) the rows of this share, of a whole table (items, ...)."""
        return torch.cat([whole[:1], whole[1 + self.rank :: self.size]])

    def place(self, whole: Tensor, share: Tensor) -> None:
        """Write the rows of this share (count, ...) to their places in a whole table (items, ...)."""
        whole[:1] = share[:1]
        whole[1 + self.rank :: self.size] = share[1:]

    def normal(self, width: int, deviation: float) -> Tensor:
        """(count, width) the rows of this share of `torch.randn(items, width) * deviation`, bit for bit, without ever
        having all of them in memory."""
        drawn, start = torch.empty(self.count, width), 0
        while start < self.items:
            # a last part of less than a group would be drawn in another way
            stop = start + _DRAWN if self.items - start - _DRAWN >= _GROUP else self.items
            part = torch.empty(stop - start, width).normal_(0.0, deviation)
            here = torch.arange(start, stop)
            mine = (here == 0) | (self.owner(here) == self.rank)
            drawn[self.local(here[mine])] = part[mine]
            start = stop
        return drawn
