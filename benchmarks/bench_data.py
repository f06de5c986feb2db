"""Speed of the data: shards written and read, and what each loader gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from bench_common import Result, Settings, choose_device, installed, need, rate, repeated
from numpy.typing import NDArray

from models.contract import Batch, ItemTable
from models.options.base import ContentField
from trainer.batches.loader import Placement, load
from trainer.batches.plan import Plan
from trainer.data.format import splits
from trainer.data.format.dataset import Dataset, map_array
from trainer.data.format.manifest import FileInfo, ShardInfo, file_info
from trainer.data.format.shards import (
    BLOCKS_PER_SHARD,
    Block,
    Kind,
    Shard,
    ShardWriter,
    block_rows,
    item_spec,
    read_shard,
    row_spec,
)

_BATCH = 2048
#: of one kind: enough to be steady, little enough for the page cache of any machine
_MAX_BYTES = 128 << 20


def blocks(dataset: Dataset, kind: Kind) -> Iterator[Block]:
    """The blocks that `mealrec prepare` writes for this dataset."""
    manifest = dataset.manifest
    if kind == "rows":
        step = block_rows(row_spec(manifest.max_length))
        for first in range(0, manifest.train_rows, step):
            rows = np.arange(first, min(first + step, manifest.train_rows))
            columns = splits.training_rows(
                rows, dataset.offsets, dataset.items, dataset.row_offsets, manifest.max_length
            )
            yield {"row": rows, **columns}
        return
    step = block_rows(item_spec(manifest.shapes))
    arrays: dict[str, NDArray[Any]] = {}
    for name, info in manifest.content.items():
        path = dataset.root / "table"
        arrays[name] = map_array(path / f"{name}.npy", "<f2", (manifest.items + 1, *info.shape))
        arrays[f"{name}_present"] = map_array(path / f"{name}.present.npy", "|b1", (manifest.items + 1,))
    for first in range(1, manifest.items + 1, step):
        rows = np.arange(first, min(first + step, manifest.items + 1), dtype=np.int32)
        yield {"rows": rows, **{name: np.array(array[rows]) for name, array in arrays.items()}}


def shards(settings: Settings) -> Result:
    """MB/s (10^6 bytes of tar) of writing and reading item and row shards, from memory and through the page cache."""
    need("webdataset")
    dataset, device = Dataset.open(settings.data), torch.device("cpu")
    return {kind: _shards_of(kind, dataset, settings, device) for kind in get_args(Kind)}


def _shards_of(kind: Kind, dataset: Dataset, settings: Settings, device: torch.device) -> Result:
    made: list[Block] = []
    size = 0
    for block in blocks(dataset, kind):
        made.append(block)
        size += sum(array.nbytes for array in block.values())
        if size >= _MAX_BYTES:
            break
    with tempfile.TemporaryDirectory(prefix="mealrec-shards-") as folder:
        root = Path(folder)
        written: dict[str, ShardInfo] = {}

        def write() -> None:
            with ShardWriter(root, kind) as writer:
                for block in made:
                    writer.write(block)
            written.update(writer.shards)

        writing = repeated(write, settings, device)
        files = {name: file_info(root / name) for name in written}
        listed = _listed(kind, dataset, root, written, files)

        def read() -> None:
            for shard in listed:
                for _ in read_shard(shard):
                    pass

        reading = repeated(read, settings, device)
    megabytes = sum(file.bytes for file in files.values()) / 1e6
    return {
        "megabytes": megabytes, "write_mb_per_s": rate(megabytes, writing["wall_s"]),
        "read_mb_per_s": rate(megabytes, reading["wall_s"]), "write": writing, "read": reading,
    }  # fmt: skip


def _listed(
    kind: Kind, dataset: Dataset, root: Path, written: dict[str, ShardInfo], files: dict[str, FileInfo]
) -> list[Shard]:
    manifest = dataset.manifest
    spec = row_spec(manifest.max_length)
    first = 0
    if kind == "items":
        spec, first = item_spec(manifest.shapes), 1
    found = []
    for name, info in sorted(written.items()):
        found.append(Shard(str(root / name), kind, first, info.rows, files[name], spec))
        first += info.rows
    assert all(info.blocks <= BLOCKS_PER_SHARD for info in written.values())
    return found


def loaders(settings: Settings) -> Result:
    """Rows/s of every placement: batches alone, and with the item content that MealRec reads for them."""
    dataset, device = Dataset.open(settings.data), choose_device(settings.device)
    return {placement: _loader(dataset, placement, device, settings) for placement in get_args(Placement)}


def _loader(dataset: Dataset, placement: Placement, device: torch.device, settings: Settings) -> Result:
    if placement == "stream" and not installed("webdataset"):
        return {"missing": "webdataset not installed"}
    loaded = load(dataset, device, seed=0, loader=placement)
    plan = Plan(loaded.training_rows.count, _BATCH)
    epoch = 0

    def pass_over(content: bool) -> None:
        nonlocal epoch
        epoch += 1
        for step in range(plan.steps):
            batch = loaded.training_rows.batch(epoch, plan.positions(step))
            if content:
                _read_content(loaded.table, batch)

    rows = repeated(lambda: pass_over(False), settings, device)
    both = repeated(lambda: pass_over(True), settings, device)
    return {
        "rows_per_s": rate(plan.rows, rows["wall_s"]), "rows_with_content_per_s": rate(plan.rows, both["wall_s"]),
        "rows": rows, "rows_with_content": both,
    }  # fmt: skip


def _read_content(table: ItemTable, batch: Batch) -> None:
    """What MealRec over TedRec reads: the last item's sequence, and vector and title of every item in the history."""
    real = batch.history[batch.history > 0]
    last = batch.history.gather(1, batch.length[:, None] - 1).squeeze(1)
    wanted: dict[ContentField, torch.Tensor] = {"sequence": last, "visual": real, "text": real}
    for name, rows in wanted.items():
        if name in table.widths:
            table.gather(name, rows)
