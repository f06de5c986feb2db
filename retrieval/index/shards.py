"""An index in shards: an index for each of several ranges of the items, and one list of the best that all find.

A shard is built and written before the next one, so a build needs memory for one of them. Each searches as widely as it
needs to find what is asked of it among its own items, so what they find together is found, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from models.errors import UserError
from retrieval.files import digest_file
from retrieval.folders import present, whole_folder
from retrieval.index.base import Vectors
from retrieval.index.build import REMEDY, load_index
from retrieval.index.faiss_index import Device, FaissIndex, Ids, Index, IndexRecord
from retrieval.records import Record, check_file, read_record

_RECORD = "shards.json"


class ShardsRecord(Record):
    """The content of `shards.json`. counts: items of each shard, in their order. files: SHA-256 of the `index.json` of
    each, which has that of the index."""

    counts: list[int]
    files: list[str]


def cuts(items: int, shards: int) -> list[slice]:
    """The item rows (from 1) of each shard: ranges of equal length, to one. Raises UserError if one had no item."""
    if not 1 <= shards <= items:
        raise UserError(f"{items:,} items cannot be in {shards:,} shards; choose 1 to {items:,}")
    ends = [1 + items * number // shards for number in range(shards + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def with_padding(item_vectors: Vectors, rows: slice) -> Vectors:
    """The vectors of a shard after a row that stands for padding: it is that of another item, and nothing reads it."""
    return item_vectors[rows.start - 1 : rows.stop]


def merged(found: Sequence[tuple[Vectors, Ids]], k: int) -> tuple[Vectors, Ids]:
    """The k best of what each shard found: scores and item rows, (B, k) each, best first.

    found: scores and item rows (B, any number) of each shard, 0 with score -inf where it found none. Of equal scores,
    the earlier shard's comes first. Where fewer than k were found, a row ends with score -inf and item 0.
    """
    scores, ids = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, max(0, k - order.shape[1])))
    return (
        np.pad(np.take_along_axis(scores, order, axis=1), missing, constant_values=-np.inf),
        np.pad(np.take_along_axis(ids, order, axis=1), missing),
    )


class ShardedIndex:
    """An `Index` of shards in this process."""

    def __init__(self, shards: Sequence[FaissIndex]) -> None:
        """shards: of consecutive ranges of the items, from row 1 on, all of one kind."""
        self._shards = list(shards)
        self._firsts = np.cumsum([0, *(shard.record.count for shard in shards[:-1])]).tolist()

    @property
    def kind(self) -> str:
        """See `Index.kind`."""
        return self._shards[0].kind

    @property
    def description(self) -> str:
        """See `Index.description`."""
        return f"{len(self._shards)} shards: " + "; ".join(shard.description for shard in self._shards)

    @property
    def limit(self) -> int:
        """See `Index.limit`."""
        short = [shard.limit for shard in self._shards if shard.limit < shard.record.count]
        return min([sum(shard.record.count for shard in self._shards), *short])

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """See `Index.search`. Raises UserError if k is not in 1..limit, and as `FaissIndex.search`."""
        if not 1 <= k <= self.limit:
            raise UserError(f"the index can return 1 to {self.limit:,} items, not {k:,}")
        found = []
        for first, shard in zip(self._firsts, self._shards, strict=True):
            scores, ids = shard.search(queries, min(k, shard.limit))
            found.append((scores, np.where(ids > 0, ids + first, 0)))
        return merged(found, k)


def save_shards(
    folder: Path, item_vectors: Vectors, shards: int, build: Callable[[Vectors], FaissIndex]
) -> list[IndexRecord]:
    """Write an index of `item_vectors` (I, D), row 0 padding, into `folder`, which is replaced as a whole.

    build: makes the index of a shard from its vectors, as `build_index` does. Returns the record of each shard. Raises
    UserError as that does, and if there are more shards than items.
    """
    ranges = cuts(len(item_vectors) - 1, shards)
    with whole_folder(folder, replace=True) as new:
        made, files = list[IndexRecord](), list[str]()
        for number, rows in enumerate(ranges):
            index = build(with_padding(item_vectors, rows))
            index.save(new / _name(number))
            made.append(index.record)
            files.append(digest_file(new / _name(number) / "index.json").sha256)
        record = ShardsRecord(counts=[each.count for each in made], files=files)
        (new / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return made


def load(
    folder: Path,
    checksum: str,
    item_vectors: Vectors,
    *,
    device: Device = "auto",
    gpu: int = 0,
    threads: int | None = None,
) -> Index:
    """The index in `folder`, in shards or in one piece; arguments and errors are those of `load_index`."""
    folder = present(folder)
    if not (folder / _RECORD).exists():
        return load_index(folder, checksum, item_vectors, device=device, gpu=gpu, threads=threads)
    record = cast(ShardsRecord, read_record(folder / _RECORD, ShardsRecord, REMEDY))
    if sum(record.counts) != len(item_vectors) - 1 or len(record.counts) != len(record.files):
        raise UserError(f"{folder} does not hold the items of the model; {REMEDY}")
    found, first = list[FaissIndex](), 1
    for number, (count, sha256) in enumerate(zip(record.counts, record.files, strict=True)):
        check_file(folder / _name(number) / "index.json", sha256, REMEDY)
        rows = with_padding(item_vectors, slice(first, first + count))
        found.append(load_index(folder / _name(number), checksum, rows, device=device, gpu=gpu, threads=threads))
        first += count
    return ShardedIndex(found)


def _name(number: int) -> str:
    return f"shard-{number:04d}"
