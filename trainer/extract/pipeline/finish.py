"""The end of an extraction: parts become item shards in the order of the list, with a manifest."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from retrieval.files import remove_own, temporaries, write_text
from trainer.data.features import FEATURES, FEATURES_VERSION, ITEMS, FeatureInfo, FeatureManifest
from trainer.data.format.manifest import ShardInfo, file_info
from trainer.data.format.shards import ShardWriter, block_rows, item_spec
from trainer.data.format.writer import provenance
from trainer.extract.pipeline.protocols import Arrays
from trainer.extract.pipeline.units import TIMES, Job
from trainer.extract.pipeline.unknown import UnknownTitles
from trainer.extract.pipeline.work import Work, remove_work
from trainer.progress import Progress

#: left by processes that were killed while they wrote, or looked whether every node sees the folder
OWN_HIDDEN = temporaries(r"features\.json", r"failed\.csv") + r"|\.(probe|shared)-[0-9a-f]{16}"

Fields = dict[ContentField, NDArray[np.float16]]


def finish(
    work: Work, job: Job, encoder: str, command: str, sources: Mapping[str, str], held: int = 64
) -> FeatureManifest:
    """Write shards, items.parquet, failed.csv and, last, features.json to `work.out`; then remove its parts.

    held: how many parts are kept in memory while a block is put together. Raises UserError where no item is done, or
    where all vectors are zeros.
    """
    out = work.out
    work.write_failures()
    positions = np.flatnonzero(work.done)
    if not len(positions):
        raise UserError(
            f"none of the {len(work.items):,} items could be encoded: {reasons(work)}; see {out}/failed.csv"
        )
    reader = _Reader(work, job, held)
    shapes = reader.shapes(positions[:1])
    step = block_rows(item_spec({str(field): shape for field, shape in shapes.items()}))
    unknown = _unknown(reader, positions, step, shapes) if job.zero_rows_are_mean else None
    shards, times = _write_shards(work, reader, positions, step, unknown)
    _write_items(work, positions, times)
    manifest = FeatureManifest(
        schema_version=FEATURES_VERSION,
        items=len(positions),
        failed=len(work.failed),
        encoder=encoder,
        unknown=unknown.count if unknown else 0,
        content={field: FeatureInfo(shape=shape, kind=job.kinds[field]) for field, shape in shapes.items()},
        settings=job.settings,
        shards=shards,
        files={name: file_info(out / name) for name in (ITEMS, *shards)},
        provenance=provenance(command, sources),
    )
    for name in manifest.files:  # on the disk before the parts are gone
        with (out / name).open("rb") as file:
            os.fsync(file.fileno())
    write_text(out / FEATURES, manifest.dumps())
    remove_own(out, OWN_HIDDEN)
    remove_work(out)
    return manifest


def reasons(work: Work) -> str:
    """How many items have failed for which reason, most frequent first; what follows a colon in one is left out."""
    counts = Counter(reason.partition(":")[0] for reason in work.failed.values())
    shown = [f"{count:,} {reason}" for reason, count in counts.most_common(5)]
    return "; ".join([*shown, *(["..."] if len(counts) > 5 else [])])


def _write_shards(
    work: Work, reader: _Reader, positions: NDArray[np.int64], step: int, unknown: UnknownTitles | None
) -> tuple[dict[str, ShardInfo], list[list[float] | None]]:
    """Write the items at `positions`, `step` to a block; the shards, and the times of each item's frames."""
    remove_own(work.out / "shards", r"items-\d{5,}\.tar")  # left by a finish that was interrupted
    times: list[list[float] | None] = []
    progress = Progress("writing shards", len(positions))
    with ShardWriter(work.out, "items") as shards:
        for start, block, shown in reader.blocks(positions, step):
            fields = unknown.fill(block) if unknown else block
            count = len(next(iter(fields.values())))
            present = {f"{field}_present": np.ones(count, np.bool_) for field in fields}
            rows = np.arange(start + 1, start + 1 + count, dtype=np.int32)
            arrays: dict[str, NDArray[Any]] = {"rows": rows, **{str(f): a for f, a in fields.items()}, **present}
            shards.write(arrays)
            times += shown.tolist() if shown is not None else [None] * count
            progress.update(start + count)
    progress.close()
    return shards.shards, times


def _write_items(work: Work, positions: NDArray[np.int64], times: list[list[float] | None]) -> None:
    frame = work.items[positions.tolist()].select("item", "title", "source")
    frame = frame.with_columns(
        pl.int_range(1, pl.len() + 1).alias("row"), pl.Series("times", times, dtype=pl.List(pl.Float32))
    )
    frame.select("row", "item", "title", "source", "times").write_parquet(work.out / ITEMS)


class _Reader:
    """Vectors of items in the order asked for, from the parts that hold them."""

    def __init__(self, work: Work, job: Job, held: int) -> None:
        self._work, self._fields, self._most = work, list(job.kinds), held
        self._held: OrderedDict[int, Arrays] = OrderedDict()

    def shapes(self, positions: NDArray[np.int64]) -> dict[ContentField, tuple[int, ...]]:
        """Shape of one item's entry, by field."""
        return {field: array.shape[1:] for field, array in self._fields_of(positions).items()}

    def blocks(
        self, positions: NDArray[np.int64], step: int
    ) -> Iterator[tuple[int, Fields, NDArray[np.float32] | None]]:
        """Start, vectors, and times (n, K) of the frames where there are any, of every `step` items."""
        for start in range(0, len(positions), step):
            chosen = positions[start : start + step]
            yield start, self._fields_of(chosen), self._gather(TIMES, chosen)

    def _fields_of(self, positions: NDArray[np.int64]) -> Fields:
        found = {field: self._gather(field, positions) for field in self._fields}
        return {field: array for field, array in found.items() if array is not None}

    def _gather(self, name: str, positions: NDArray[np.int64]) -> NDArray[Any] | None:
        places = self._work.place[positions].tolist()
        if name not in self._part(places[0][0]):
            return None
        return np.stack([self._part(part)[name][row] for part, row in places])

    def _part(self, number: int) -> Arrays:
        if number not in self._held:
            self._held[number] = self._work.part(number)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        return self._held[number]


def _unknown(
    reader: _Reader, positions: NDArray[np.int64], step: int, shapes: Mapping[ContentField, tuple[int, ...]]
) -> UnknownTitles:
    """The titles without a known word, from a pass over all vectors. Raises UserError: there are no others."""
    unknown = UnknownTitles({field: shape[-1] for field, shape in shapes.items()})
    for _, fields, _ in reader.blocks(positions, step):
        unknown.add(fields)
    unknown.check()
    return unknown
