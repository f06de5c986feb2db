"""Write a prepared dataset folder (docs/dataset-format.md) from sequences and raw content, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import console
from models.errors import UserError
from models.options.base import ContentField
from retrieval.folders import whole_folder
from trainer.data.format import splits
from trainer.data.format.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    ContentInfo,
    Core,
    Manifest,
    Provenance,
    ShardInfo,
    SplitInfo,
    Splits,
    Statistics,
    file_info,
)
from trainer.data.format.shards import ShardWriter, block_rows, item_spec, row_spec
from trainer.data.format.table_file import TableWriter
from trainer.data.format.version import git_revision, program_version
from trainer.data.mean_and_deviation import MeanAndDeviation
from trainer.progress import Progress

_CHUNK_BYTES = 32 << 20
_ID_CHUNK = 1 << 18
#: the largest number in float16
#: share of the variance of a dimension that rounding to float16 may take without a warning
_MOST_LOST = 0.01
_LARGEST = 65504.0


@dataclass(frozen=True)
class Content:
    """Content of one field, read block by block, more than once: `read` is a pure function.

    shape: one item's entry, (K, V) for "sequence", (V,) for "visual", (H,) for "text".
    read(start, stop): items start..stop-1 of `item_ids` (counted from 0: item i becomes row i + 1), as raw values
    (stop - start, *shape) float, and present (stop - start,) bool; values of items not present are ignored.
    kind: what it is, in words ("frames", "video", "segments", "segments mean", "title"); encoder: what made it.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], tuple[NDArray[Any], NDArray[np.bool_]]]
    kind: str
    encoder: str


def write_dataset(
    out: Path,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    content: Mapping[ContentField, Content],
    item_titles: Sequence[str | None] | None = None,
    times: NDArray[np.int64] | None = None,
    behaviours: NDArray[np.uint8] | None = None,
    behaviour_names: Sequence[str] = (),
    max_length: int = 10,
    core: Core = Core(k=0, on="none"),  # noqa: B008 - frozen
    dropped: Mapping[str, int] | None = None,
    command: str = "",
    sources: Mapping[str, str] | None = None,
    truth: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the dataset into `out` atomically (a temporary sibling folder, then a rename) and return its manifest.

    user_ids, item_ids, item_titles: raw ids as sequences (only len() and slices are used, so they may be lazy).
    offsets: (U + 1,) int64; items: (N,) int32 item rows 1..I (row i + 1 is item_ids[i]), oldest first, at least 3 per
    user; times, behaviours: (N,). sources: file name -> sha256. truth: JSON values of a synthetic world.
    Raises UserError: `out` exists and is not empty; content that is not finite.
    """
    assert offsets[-1] == len(items)
    assert len(offsets) == len(user_ids) + 1
    assert np.diff(offsets).min() >= 3, "users need at least 3 items"
    counts = splits.train_counts(offsets, items, len(item_ids))
    with whole_folder(out) as work:
        _write_sequences(work, {"offsets": offsets, "items": items, "times": times, "behaviours": behaviours})
        _write_ids(work / "users.parquet", {"user": user_ids}, 0)
        titles = item_titles if item_titles is not None else _Nothing(len(item_ids))
        _write_ids(work / "items.parquet", {"item": item_ids, "title": titles}, 1, train_count=counts[1:])
        infos, shards = _write_content(work, content, counts)
        shards |= _write_rows(work, offsets, items, max_length, behaviours if behaviour_names else None)
        files = {str(path.relative_to(work)): file_info(path) for path in sorted(work.rglob("*")) if path.is_file()}
        users, n_items, total = len(user_ids), len(item_ids), len(items)
        cold = {split: int(splits.cold_mask(offsets, items, counts, split).sum()) for split in splits.SPLITS}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            users=users,
            items=n_items,
            interactions=total,
            train_rows=int(splits.row_offsets(offsets)[-1]),
            max_length=max_length,
            core=core,
            content=infos,
            behaviours=tuple(behaviour_names),
            dropped=dict(dropped or {}),
            statistics=Statistics(
                users=users,
                items=n_items,
                interactions=total,
                average_length=total / users,
                sparsity=1 - total / (users * n_items),
            ),
            splits=Splits(
                validation=SplitInfo(cold_targets=cold["validation"]), test=SplitInfo(cold_targets=cold["test"])
            ),
            shards=shards,
            files=files,
            provenance=provenance(command, sources or {}),
            truth=dict(truth) if truth is not None else None,
        )
        (work / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    return manifest


def _write_sequences(work: Path, arrays: Mapping[str, NDArray[Any] | None]) -> None:
    (work / "sequences").mkdir()
    dtypes = {"offsets": "<i8", "items": "<i4", "times": "<i8", "behaviours": "|u1"}
    for name, array in arrays.items():
        if array is not None:
            np.save(work / "sequences" / f"{name}.npy", array.astype(dtypes[name], copy=False), allow_pickle=False)


class _Nothing(Sequence[None]):
    """A column of nulls of any length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return [None] * len(range(*index.indices(self._length))) if isinstance(index, slice) else None


def _write_ids(
    path: Path, columns: Mapping[str, Sequence[str | None]], first: int, train_count: NDArray[np.int64] | None = None
) -> None:
    """Columns of strings (read in slices) beside their row number."""
    data: dict[str, pl.Series] = {}
    for name, values in columns.items():
        starts = range(0, len(values), _ID_CHUNK)
        data[name] = pl.concat([pl.Series(name, values[s : s + _ID_CHUNK], dtype=pl.String) for s in starts])
    length = len(next(iter(data.values())))
    frame = pl.DataFrame({"row": np.arange(first, first + length, dtype=np.int64), **data})
    if train_count is not None:
        frame = frame.with_columns(pl.Series("train_count", train_count))
    frame.write_parquet(path)


def _chunks(content: Mapping[ContentField, Content], n_items: int, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of items, a multiple of `step` long, whose raw values fit in _CHUNK_BYTES."""
    widest = max((int(np.prod(c.shape)) * 4 for c in content.values()), default=4)
    size = max(1, _CHUNK_BYTES // widest // step) * step
    for start in range(0, n_items, size):
        yield start, min(start + size, n_items)


def _read(field: str, content: Content, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Items start..stop-1, zeros for an item that has no such content; the table holds them as float16."""
    values, present = content.read(start, stop)
    assert values.shape == (stop - start, *content.shape), (field, values.shape, content.shape)
    values = np.where(present.reshape(-1, *(1,) * len(content.shape)), values, 0)
    largest = np.abs(values).reshape(stop - start, -1).max(axis=1)  # NaN if any value is NaN
    if not (largest <= _LARGEST).all():
        bad = int(np.argmin(largest <= _LARGEST))
        beyond = f"holds {largest[bad]:g}, beyond {_LARGEST:,.0f}"
        what = beyond if np.isfinite(largest[bad]) else "is NaN or infinite"
        raise UserError(f"content {field!r} of item number {start + bad} {what}; correct it or leave the item out")
    return values, present


def _statistics(field: str, content: Content, counts: NDArray[np.int64], step: int) -> tuple[MeanAndDeviation, int]:
    """Mean and deviation over items with training occurrences and content, and how many items have no content.

    Raises UserError if the content tells no item from another: none has any, or all have the same. Warns if float16
    keeps too little of what tells items apart.
    """
    width = content.shape[-1]
    found, missing, lost_V, count = MeanAndDeviation(width), 0, np.zeros(width), 0
    first: NDArray[np.float16] | None = None
    differ = False
    n_items = len(counts) - 1
    progress = Progress(f"statistics of {field}", n_items)
    for start, stop in _chunks({"text": content}, n_items, step):
        raw, present = _read(field, content, start, stop)
        values = raw.astype(np.float16)
        missing += int((~present).sum())
        if first is None and present.any():
            first = values[np.argmax(present)]
        differ = differ or bool((values[present] != first).any())
        used = present & (counts[start + 1 : stop + 1] > 0)
        kept = values[used].reshape(-1, width).astype(np.float64)
        found.add(kept)
        lost_V += ((raw[used].reshape(-1, width) - kept) ** 2).sum(axis=0)
        count += len(kept)
        progress.update(stop)
    progress.close()
    if not differ and n_items - missing != 1:  # a single vector may be the only one that there is
        raise UserError(_of_no_use(field, content, None if first is None else bool(first.any())))
    poor = int((lost_V > _MOST_LOST * count * found.deviation_V**2).sum())
    if poor:
        console.warn(
            f"content {field!r}: {poor} of {width} dimensions lie so far from 0, for how little they vary, that half "
            f"precision (float16) loses over {_MOST_LOST:.0%} of their variance; subtract each dimension's mean first"
        )
    return found, missing


def _of_no_use(field: str, content: Content, nonzero: bool | None) -> str:
    """What is wrong with content that is the same for all items. nonzero: whether it is not 0; None if none has any."""
    found = {None: "no item has any", False: "every item has a zero vector", True: "all items have the same vector"}
    return (
        f"content {field!r} ({content.kind}, {content.encoder}) tells no item from another: {found[nonzero]}; "
        "correct the vectors, or prepare the dataset without them"
    )


def _write_content(
    work: Path, content: Mapping[ContentField, Content], counts: NDArray[np.int64]
) -> tuple[dict[ContentField, ContentInfo], dict[str, ShardInfo]]:
    """Table and item shards, in one pass over the raw content after the pass for its statistics."""
    n_items = len(counts) - 1
    shapes = {field: c.shape for field, c in content.items()}
    step = block_rows(item_spec({str(field): shape for field, shape in shapes.items()}))
    infos: dict[ContentField, ContentInfo] = {}
    for field, c in content.items():
        found, missing = _statistics(field, c, counts, step)
        infos[field] = ContentInfo(
            shape=c.shape,
            kind=c.kind,
            encoder=c.encoder,
            missing=missing,
            mean=tuple(found.mean_V.tolist()),
            std=tuple(found.deviation_V.tolist()),
        )
    progress = Progress("writing item content", n_items)
    with TableWriter(work, n_items, shapes) as table, ShardWriter(work, "items") as shards:
        for start, stop in _chunks(content, n_items, step):
            chunk: dict[str, NDArray[Any]] = {"rows": np.arange(start + 1, stop + 1, dtype=np.int32)}
            for field, c in content.items():
                raw, present = _read(field, c, start, stop)
                chunk[field] = raw.astype(np.float16)
                chunk[f"{field}_present"] = present.astype(np.bool_, copy=False)
            table.append(chunk)
            for first in range(0, stop - start, step):
                shards.write({name: array[first : first + step] for name, array in chunk.items()})
            progress.update(stop)
    return infos, shards.shards


def _write_rows(
    work: Path,
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    max_length: int,
    behaviours: NDArray[np.uint8] | None,
) -> dict[str, ShardInfo]:
    starts = splits.row_offsets(offsets)
    total = int(starts[-1])
    step = block_rows(row_spec(max_length, behaviours is not None))
    progress = Progress("writing training rows", total)
    with ShardWriter(work, "rows") as shards:
        for first in range(0, total, step):
            rows = np.arange(first, min(first + step, total))
            block = splits.training_rows(rows, offsets, items, starts, max_length, behaviours)
            shards.write({"row": rows, **block})
            progress.update(first + step)
    return shards.shards


def provenance(command: str, sources: Mapping[str, str]) -> Provenance:
    """What made a folder, now, with this version of the program. sources: file name -> sha256."""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Provenance(
        command=command, sources=dict(sources), version=program_version(), git_revision=git_revision(), time=time
    )
