"""Tables that are divided among workers, in checkpoints: each worker's share is a part, in files of its own.

So no worker ever has the whole table in memory: the first one receives a part, writes it, and forgets it, and a reader
takes from each part the rows of its own share. Any number of workers can read what another number wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from models.contract import SequenceModel
from models.row_share import RowShare
from trainer.process import world
from trainer.training.checkpoint_files import MODEL, OPTIMIZER
from trainer.training.groups import MOMENTS, divided_tables

_PART = re.compile(r"(.+)-part-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Part:
    """The part of worker `rank` of `size` workers, of a group of tensors."""

    group: str
    rank: int
    size: int

    @property
    def name(self) -> str:
        """Of the group of tensors that this part is in a checkpoint."""
        return f"{self.group}-part-{self.rank}-of-{self.size}"


def part_of(name: str) -> Part | None:
    """The inverse of `Part.name`; None for a group that is no part."""
    found = _PART.fullmatch(name)
    return Part(found[1], int(found[2]), int(found[3])) if found else None


def all_there(names: Iterable[str]) -> bool:
    """Whether no part is missing among the groups of a checkpoint, and their parts are of one number of workers."""
    parts = [part for name in names if (part := part_of(name))]
    sizes, groups = {part.size for part in parts}, {part.group for part in parts}
    every = {Part(group, rank, size) for size in sizes for group in groups for rank in range(size)}
    return len(sizes) < 2 and {*parts} == every


class RowParts:
    """The parts of one checkpoint. Rank 0 iterates over them, and meanwhile every other rank calls `send`."""

    def __init__(self, model: SequenceModel, optimizer: torch.optim.Optimizer) -> None:
        """Takes references: the tables must not change until all parts are written."""
        assert model.share is not None
        self._share = model.share
        self._groups: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}}
        for name, table in divided_tables(model).items():
            self._groups[MODEL][name] = table.detach()
            for key in MOMENTS:
                if key in optimizer.state.get(table, {}):
                    self._groups[OPTIMIZER][f"{name}/{key}"] = optimizer.state[table][key]
        self._parts = self._received() if world()[0] == 0 else iter(())

    @property
    def bytes(self) -> int:
        """Of all parts together, about."""
        return self._share.size * sum(tensor.nbytes for named in self._groups.values() for tensor in named.values())

    def __iter__(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """On rank 0, name and tensors (on the CPU) of each part that is left, one at a time."""
        return self._parts

    def _received(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for rank in range(self._share.size):
            rows = self._share.of_worker(rank).count
            for group, named in self._groups.items():
                part = {}
                for name, own in named.items():
                    value = own
                    if rank > 0:
                        value = own.new_empty(rows, *own.shape[1:])
                        dist.recv(value, src=rank)
                    part[name] = value.cpu()
                yield Part(group, rank, self._share.size).name, part

    def send(self) -> None:
        """Send the part of this worker to rank 0, which may come to it later. On rank 0: receive what it has not, and
        forget it, so that nobody waits for it."""
        for _ in self._parts:
            pass
        if world()[0] > 0:
            for named in self._groups.values():
                for tensor in named.values():
                    dist.send(tensor.contiguous(), dst=0)


@dataclass
class Joined:
    """Tables that are put together from the parts of a checkpoint: the rows of `share`, or all of them (None)."""

    share: RowShare | None
    _tables: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _items: int = 1

    def needs(self, part: Part) -> bool:
        """Whether a part has rows that are asked for. It may be left out if not."""
        return self.share is None or self.share.size != part.size or self.share.rank == part.rank

    def add(self, part: Part, tensors: Mapping[str, Tensor]) -> None:
        """Take from a part what is asked for. Of each group, part 0 must come first."""
        for name, rows in tensors.items():
            tables = self._tables.setdefault(part.group, {})
            if self.share is not None and self.share.size == part.size:  # this worker's part, as it was
                tables[name] = rows
                continue
            # no later part has more rows than part 0, so these are enough
            items = 1 + (len(rows) - 1) * part.size if self.share is None else self.share.items
            share = self.share or RowShare(0, 1, items)
            if name not in tables:
                tables[name] = rows.new_zeros(share.count, *rows.shape[1:])
            there = RowShare(part.rank, part.size, items).rows(torch.arange(len(rows)))
            mine = (there == 0) | (share.owner(there) == share.rank)
            tables[name][share.local(there[mine])] = rows[mine]
            self._items = max(self._items, int(there.max()) + 1)

    def tables(self) -> dict[str, dict[str, Tensor]]:
        """The tables, by group and name, after the last part."""
        if self.share is not None:
            return self._tables
        # part 0 told only how many items there are at most
        return {group: {name: x[: self._items] for name, x in named.items()} for group, named in self._tables.items()}
