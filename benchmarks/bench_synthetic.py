"""A dataset of random content and interactions in the sizes of the paper: made for timing, it can teach nothing.

Written by hand rather than by `mealrec prepare`, because this must work where webdataset is not installed: the dataset
then has no shards, and everything but streaming can be measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_common import installed
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from models.options.base import ContentField
from trainer.data.format import splits
from trainer.data.format.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    ContentInfo,
    Core,
    Manifest,
    Provenance,
    SplitInfo,
    Splits,
    Statistics,
    file_info,
)

_CHUNK = 4096
_CORE = 4
_ZIPF = 0.8


@dataclass(frozen=True)
class Size:
    """users, items, interactions; steps, width: K and V of a sequence; text: H."""

    users: int
    items: int
    interactions: int
    steps: int = 5
    width: int = 768
    text: int = 768


#: small and big: MicroLens in Table 1 of the paper. sample: that of README's results. tiny: for --quick
SIZES = {
    "small": Size(8_694, 8_265, 50_838),
    "big": Size(86_073, 18_700, 597_104),
    "sample": Size(8_542, 6_458, 54_237, width=384, text=384),
    "tiny": Size(100, 120, 900, steps=3, width=16, text=16),
}


def write(folder: Path, size: Size, seed: int = 0) -> None:
    """Write a random dataset of `size` into `folder` (docs/dataset-format.md, without ids and times)."""
    rng = np.random.default_rng(seed)
    (folder / "sequences").mkdir(parents=True)
    (folder / "table").mkdir()
    offsets, items = _interactions(rng, size)
    np.save(folder / "sequences/offsets.npy", offsets, allow_pickle=False)
    np.save(folder / "sequences/items.npy", items, allow_pickle=False)
    shapes: dict[ContentField, tuple[int, ...]] = {
        "sequence": (size.steps, size.width), "visual": (size.width,), "text": (size.text,)
    }  # fmt: skip
    for name, shape in shapes.items():
        _table(rng, folder / "table", name, (size.items + 1, *shape))
    manifest = _manifest(size, offsets, items, shapes)
    if installed("webdataset"):
        manifest = _with_shards(folder, manifest)
    (folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")


def _interactions(rng: np.random.Generator, size: Size) -> tuple[splits.Ints, NDArray[np.int32]]:
    """Offsets (U + 1,) with at least 4 items each and a long tail of lengths; items (N,) of skewed popularity."""
    spare = size.interactions - _CORE * size.users
    weights = rng.exponential(size=size.users)
    length = _CORE + rng.multinomial(spare, weights / weights.sum())
    popularity = rng.permutation(np.arange(1, size.items + 1) ** -_ZIPF)
    items = rng.choice(size.items, size.interactions, p=popularity / popularity.sum()) + 1
    return np.concatenate([[0], np.cumsum(length)]).astype(np.int64), items.astype(np.int32)


def _table(rng: np.random.Generator, folder: Path, name: str, shape: tuple[int, ...]) -> None:
    array = open_memmap(folder / f"{name}.npy", "w+", np.dtype("<f2"), shape)
    for start in range(1, shape[0], _CHUNK):
        part = array[start : start + _CHUNK]
        part[:] = rng.standard_normal(part.shape, np.float32)
    array.flush()
    np.save(folder / f"{name}.present.npy", np.arange(shape[0]) > 0, allow_pickle=False)


def _manifest(
    size: Size, offsets: splits.Ints, items: NDArray[np.int32],
    shapes: dict[ContentField, tuple[int, ...]],
) -> Manifest:  # fmt: skip
    counts = splits.train_counts(offsets, items, size.items)
    cold = {split: int(splits.cold_mask(offsets, items, counts, split).sum()) for split in splits.SPLITS}
    content = {
        name: ContentInfo(
            shape=shape, kind="random", encoder="benchmark", missing=0, mean=(0.0,) * shape[-1], std=(1.0,) * shape[-1]
        )
        for name, shape in shapes.items()
    }
    return Manifest(
        schema_version=SCHEMA_VERSION, users=size.users, items=size.items, interactions=size.interactions,
        train_rows=int(splits.row_offsets(offsets)[-1]), max_length=10, core=Core(k=0, on="none"),
        content=content, behaviours=(), dropped={},
        statistics=Statistics(
            users=size.users, items=size.items, interactions=size.interactions,
            average_length=size.interactions / size.users, sparsity=1 - size.interactions / (size.users * size.items),
        ),
        splits=Splits(
            validation=SplitInfo(cold_targets=cold["validation"]), test=SplitInfo(cold_targets=cold["test"])
        ),
        shards={}, files={},
        provenance=Provenance(command="benchmark.py", sources={}, version="", git_revision=None, time=""),
    )  # fmt: skip


def _with_shards(folder: Path, manifest: Manifest) -> Manifest:
    from bench_data import blocks

    from trainer.data.format.dataset import Dataset
    from trainer.data.format.shards import ShardWriter

    (folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    dataset = Dataset.open(folder)
    with ShardWriter(folder, "rows") as writer:
        for block in blocks(dataset, "rows"):
            writer.write(block)
    files = {name: file_info(folder / name) for name in writer.shards}
    return manifest.model_copy(update={"shards": writer.shards, "files": files})
