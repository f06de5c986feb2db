"""A log, part by part: how its columns are written, and its rows divided among partitions by user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from models.errors import UserError
from trainer.data.format.manifest import file_info
from trainer.data.sources.base import Written, reading_steps
from trainer.data.sources.ids import all_end_in_zero
from trainer.data.sources.parquet import common_types
from trainer.data.sources.table import TableFiles
from trainer.data.sources.times import TextTimes

#: a row's place in the log is the number of its part, and of the row in it, in one integer
_ROW_BITS = 40


@dataclass(frozen=True)
class Looked:
    """What one part says about the log. schema: of its columns; whole, times: as in `Written`; digest: its SHA-256."""

    rows: int
    schema: pl.Schema
    whole: frozenset[str]
    times: TextTimes | None
    digest: str


def look(table: TableFiles, part: int) -> Looked:
    """Read a part, and keep only what is known of it. Raises UserError, as `TableFiles.read`."""
    frame, digest = table.read(part)
    path = table.parts[part].path
    if path is not None:
        digest = file_info(path).sha256
    as_text = frame.schema["time"] == pl.String and table.time_format is None
    return Looked(
        rows=len(frame),
        schema=frame.schema,
        whole=frozenset(name for name in ("user", "item") if all_end_in_zero(frame[name])),
        times=TextTimes.of(frame["time"]) if as_text else None,
        digest=digest or "",
    )


def written(looked: Sequence[Looked], source: str) -> Written:
    """What all parts say together. Raises UserError, as `common_types`."""
    filled = [each for each in looked if each.rows]
    types = common_types([each.schema for each in filled], source)
    whole = frozenset.intersection(*(each.whole for each in filled))
    times = [each.times for each in filled if each.times is not None]
    return Written(dict(types), whole, TextTimes.of_all(times) if times else None)


@dataclass(frozen=True)
class Mistake:
    """A mistake in a part. step: which of `reading_steps` found it; message: for the user."""

    step: int
    message: str


def first_mistake(found: Iterable[Mistake | None]) -> UserError | None:
    """The mistake that reading all parts at once would tell: that of the first step, in the first part that has one."""
    mistakes = [mistake for mistake in found if mistake is not None]
    return UserError(min(mistakes, key=lambda mistake: mistake.step).message) if mistakes else None


def scatter(table: TableFiles, how: Written, partitions: int, folder: Path, part: int) -> Mistake | None:
    """Write the rows of a part to `folder`, in a batch for each partition; or say what is wrong with them.

    All rows of a user are in one partition, in the order of the source.
    """
    frame = table.read_marked(part, how.types)
    done = 0
    try:
        for step in reading_steps(table.first, table.time_format, how):
            frame = step(frame)
            done += 1
    except UserError as error:
        return Mistake(done, str(error))
    kept = ["user", "item", "time", "_exact", *(["title"] if "title" in frame.columns else [])]
    position = (part << _ROW_BITS) + np.arange(len(frame), dtype=np.int64)
    frame = frame.select(kept).with_columns(pl.Series("position", position))
    place = (frame["user"].hash(seed=0) % partitions).to_numpy()
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place.astype(np.int64), minlength=partitions))
    rows = frame[order].to_arrow(compat_level=pl.CompatLevel.oldest())
    with pa.ipc.new_file(_file(folder, part), rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            out.write_batch(_one_batch(rows.slice(start, end - start)))
    return None


def gathered(folder: Path, parts: Sequence[int], partition: int) -> pl.DataFrame:
    """The rows of a partition, of all parts, in the order of the source."""
    batches = list(_batches(folder, parts, partition))
    frame = pl.from_arrow(pa.Table.from_batches(batches))
    assert isinstance(frame, pl.DataFrame)
    return frame


def remove(folder: Path, parts: Sequence[int]) -> None:
    """Remove what `scatter` wrote."""
    for part in parts:
        _file(folder, part).unlink()


def _batches(folder: Path, parts: Sequence[int], partition: int) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with pa.memory_map(str(_file(folder, part))) as source:
            yield pa.ipc.open_file(source).get_batch(partition)


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06}.arrow"
