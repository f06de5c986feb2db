"""A prepared dataset, opened: memory-mapped sequences, ids on demand, leave-one-out derived."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from models.contract import TrainingInteractions
from models.errors import UserError
from trainer.data.bounded import MALFORMED, check_parquet, map_npy
from trainer.data.format import splits
from trainer.data.format.manifest import Manifest, load_manifest, verify_files
from trainer.data.format.node_copy import materialise
from trainer.data.format.splits import Split
from trainer.data.storage import default_cache, is_url


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset (docs/dataset-format.md).

    root: local folder with ids, sequences and table. source: path or URL where its shards are.
    offsets: (U + 1,) int64 and items: (N,) int32 item rows, memory-mapped; row_offsets: (U + 1,) int64 training rows.
    behaviours: (N,) uint8 along `items`, bit n for `manifest.behaviours[n]`; None where the source has none.
    """

    root: Path
    source: str
    manifest: Manifest
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    row_offsets: NDArray[np.int64]
    behaviours: NDArray[np.uint8] | None

    @classmethod
    def open(cls, source: str | Path, cache_dir: Path | None = None) -> Dataset:
        """Open the dataset in a local folder, or at a URL (streamed once per node into `cache_dir`).

        Raises UserError: no dataset there, another schema version, sequences that do not fit the manifest.
        """
        source = str(source)
        root = materialise(source, cache_dir or default_cache()) if is_url(source) else Path(source)
        manifest = load_manifest(root)
        offsets = map_array(root / "sequences/offsets.npy", "<i8", (manifest.users + 1,))
        items = map_array(root / "sequences/items.npy", "<i4", (manifest.interactions,))
        if offsets[0] != 0 or offsets[-1] != len(items) or np.diff(offsets).min() < 3:
            raise UserError(f"{root / 'sequences/offsets.npy'} does not fit items.npy; prepare the dataset again")
        behaviours = None
        if manifest.behaviours:
            behaviours = map_array(root / "sequences/behaviours.npy", "|u1", (manifest.interactions,))
        return cls(root, source, manifest, offsets, items, splits.row_offsets(offsets), behaviours)

    def verify(self) -> None:
        """Check every local file against size and sha256 in the manifest; UserError names the first that differs."""
        copied = is_url(self.source)  # shards are not copied; they are checked as they are read
        files = {n: i for n, i in self.manifest.files.items() if not (copied and n.startswith("shards/"))}
        verify_files(self.root, files)

    def user_ids(self) -> list[str]:
        """Raw id of user rows 0..U-1."""
        return self._column("users.parquet", "user", self.manifest.users)

    def item_ids(self) -> list[str]:
        """Raw id of item rows 1..I: entry i is row i + 1."""
        return self._column("items.parquet", "item", self.manifest.items)

    def item_titles(self) -> list[str | None]:
        """Title of item rows 1..I (None: unknown): entry i is row i + 1."""
        return self._column("items.parquet", "title", self.manifest.items)

    def training_interactions(self) -> TrainingInteractions:
        """Training items of every user as compressed rows."""
        length = np.diff(self.offsets) - 2
        offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        training = np.ones(len(self.items), np.bool_)
        for split in splits.SPLITS:
            training[splits.target_positions(self.offsets, split)] = False
        items = self.items[training].astype(np.int64)
        return TrainingInteractions(torch.from_numpy(offsets), torch.from_numpy(items))

    def eval_rows(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(U,) user rows and (U,) positions in `items` of their targets."""
        return np.arange(self.manifest.users, dtype=np.int64), splits.target_positions(self.offsets, split)

    def train_counts(self) -> NDArray[np.int64]:
        """(I + 1,) how often each item row occurs at training positions."""
        return splits.train_counts(self.offsets, self.items, self.manifest.items)

    def cold_mask(self, split: Split) -> NDArray[np.bool_]:
        """(U,) whether the user's target of `split` never occurs at a training position."""
        return splits.cold_mask(self.offsets, self.items, self.train_counts(), split)

    def _column(self, name: str, column: str, rows: int) -> list[Any]:
        path = self.root / name
        try:
            check_parquet(path, rows)
            values: list[Any] = pl.read_parquet(path, columns=[column], glob=False)[column].to_list()
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(f"cannot read {path} ({error}); prepare the dataset again") from None
        return values


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The .npy file at `path`, memory-mapped; UserError where it is missing, damaged, or of other dtype or shape."""
    try:
        # mode "c" (copy-on-write) although nothing is written: torch shares the memory of writable arrays only
        array = map_npy(path, "c")
    except MALFORMED as error:
        raise UserError(f"cannot read {path} ({error}); prepare the dataset again") from None
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise UserError(
            f"{path} is {array.dtype} {array.shape}, the manifest says {np.dtype(dtype)} {shape}; "
            "prepare the dataset again"
        )
    return array
