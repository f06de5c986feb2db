"""Write a prepared dataset folder (docs/dataset-format.md) from sequences and raw content, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.options.base import ContentField
from retrieval.folders import whole_folder
from trainer.data.format import shards as shard_format
from trainer.data.format import splits
from trainer.data.format.content import Content, blocks, checked, statistics
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
from trainer.data.format.threads import in_order
from trainer.data.format.version import git_revision, program_version
from trainer.progress import Progress

_ID_CHUNK = 1 << 18


def write_dataset(
    out: Path,
    *,
    user_ids: Sequence[str] | pl.Series,
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

    user_ids, item_ids, item_titles: raw ids (only len() and slices are used, so they may be lazy).
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
        paths = [path for path in sorted(work.rglob("*")) if path.is_file()]
        files = dict(zip((str(path.relative_to(work)) for path in paths), in_order(file_info, paths), strict=True))
        users, n_items, total = len(user_ids), len(item_ids), len(items)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION, users=users, items=n_items, interactions=total,
            train_rows=int(splits.row_offsets(offsets)[-1]), max_length=max_length, core=core, content=infos,
            behaviours=tuple(behaviour_names), dropped=dict(dropped or {}), statistics=_sizes(n_items, offsets, items),
            splits=_splits(offsets, items, counts), shards=shards, files=files,
            provenance=provenance(command, sources or {}), truth=dict(truth) if truth is not None else None,
        )  # fmt: skip
        (work / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    return manifest


def _sizes(n_items: int, offsets: NDArray[np.int64], items: NDArray[np.int32]) -> Statistics:
    users, interactions = len(offsets) - 1, len(items)
    return Statistics(
        users=users,
        items=n_items,
        interactions=interactions,
        average_length=interactions / users,
        sparsity=1 - splits.distinct_pairs(offsets, items, n_items) / (users * n_items),
    )


def _splits(offsets: NDArray[np.int64], items: NDArray[np.int32], counts: NDArray[np.int64]) -> Splits:
    cold = {split: int(splits.cold_mask(offsets, items, counts, split).sum()) for split in splits.SPLITS}
    return Splits(validation=SplitInfo(cold_targets=cold["validation"]), test=SplitInfo(cold_targets=cold["test"]))


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
    path: Path,
    columns: Mapping[str, Sequence[str | None] | pl.Series],
    first: int,
    train_count: NDArray[np.int64] | None = None,
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


def _write_content(
    work: Path, content: Mapping[ContentField, Content], counts: NDArray[np.int64]
) -> tuple[dict[ContentField, ContentInfo], dict[str, ShardInfo]]:
    """Table and item shards, in one pass over the raw content after the pass for its statistics."""
    n_items = len(counts) - 1
    shapes: dict[str, tuple[int, ...]] = {field: c.shape for field, c in content.items()}
    step = block_rows(item_spec({str(field): shape for field, shape in shapes.items()}))
    infos: dict[ContentField, ContentInfo] = {}
    for field, c in content.items():
        found, missing = statistics(field, c, counts, step)
        infos[field] = ContentInfo(
            shape=c.shape,
            kind=c.kind,
            encoder=c.encoder,
            missing=missing,
            mean=tuple(found.mean_V.tolist()),
            std=tuple(found.deviation_V.tolist()),
        )

    def read(block: tuple[int, int]) -> dict[str, NDArray[Any]]:
        start, stop = block
        chunk: dict[str, NDArray[Any]] = {"rows": np.arange(start + 1, stop + 1, dtype=np.int32)}
        for field, c in content.items():
            raw, present = checked(field, c, start, stop)
            chunk[field] = raw.astype(np.float16)
            chunk[f"{field}_present"] = present.astype(np.bool_, copy=False)
        return chunk

    progress = Progress("writing item content", n_items)
    with TableWriter(work, n_items, shapes) as table, ShardWriter(work, "items") as shards:
        for chunk in in_order(read, blocks(content.values(), n_items, step)):
            table.append(chunk)
            for first in range(0, len(chunk["rows"]), step):
                shards.write({name: array[first : first + step] for name, array in chunk.items()})
            progress.update(int(chunk["rows"][-1]))
    progress.close()
    return infos, shards.shards


def _write_rows(
    work: Path,
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
    max_length: int,
    behaviours: NDArray[np.uint8] | None,
) -> dict[str, ShardInfo]:
    """Shards of training rows, several at a time: each is a function of the sequences and of its number."""
    starts = splits.row_offsets(offsets)
    total = int(starts[-1])
    step = block_rows(row_spec(max_length, behaviours is not None))
    size = step * shard_format.BLOCKS_PER_SHARD

    def write(number: int) -> dict[str, ShardInfo]:
        with ShardWriter(work, "rows", number) as shard:
            for first in range(number * size, min((number + 1) * size, total), step):
                rows = np.arange(first, min(first + step, total))
                block = splits.training_rows(rows, offsets, items, starts, max_length, behaviours)
                shard.write({"row": rows, **block})
        return shard.shards

    progress = Progress("writing training rows", total)
    shards: dict[str, ShardInfo] = {}
    for written in in_order(write, range(-(-total // size))):
        shards |= written
        progress.update(len(shards) * size)
    progress.close()
    return shards


def provenance(command: str, sources: Mapping[str, str]) -> Provenance:
    """What made a folder, now, with this version of the program. sources: file name -> sha256."""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Provenance(
        command=command, sources=dict(sources), version=program_version(), git_revision=git_revision(), time=time
    )
