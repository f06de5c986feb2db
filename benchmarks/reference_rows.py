"""The rows of a prepared dataset as RecBole takes them: read, written as atomic files, and proved equal.

numpy and json alone, nothing of ours (docs/dataset-format.md): an error in our own loader must not reach the reference.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAME = "reference"  # of the temporary RecBole dataset
SPLITS = ("train", "valid", "test")
TARGET_FROM_END = {"valid": 2, "test": 1}


@dataclass(frozen=True)
class Sequences:
    """The interactions of a prepared dataset: user u has `items[offsets[u]:offsets[u + 1]]`, oldest first."""

    offsets: np.ndarray
    items: np.ndarray
    manifest: dict[str, Any]
    manifest_sha256: str

    @property
    def max_length(self) -> int:
        return int(self.manifest["max_length"])

    def positions(self, split: str) -> Iterator[tuple[int, int]]:
        """(user, target position) of every row of the split: all prefixes to train, the last two items to evaluate."""
        for user, (start, end) in enumerate(zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)):
            targets = {"train": range(start + 1, end - 2), "valid": (end - 2,), "test": (end - 1,)}[split]
            for position in targets:
                yield user, position

    def history(self, user: int, position: int) -> np.ndarray:
        """At most `max_length` item rows before the position, oldest first: what the model is shown."""
        return self.items[max(int(self.offsets[user]), position - self.max_length) : position]

    def trained_items(self) -> np.ndarray:
        """(I + 1,) bool: items that occur in a training row, as history or as target."""
        seen = np.zeros(self.manifest["items"] + 1, dtype=bool)
        for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            if end - start > 3:  # a user with 3 items has one training item and no training row
                seen[self.items[start : end - 2]] = True
        return seen


def read_sequences(folder: Path) -> Sequences:
    """Sequences of a prepared dataset; leaves with a message when the folder cannot serve as a reference."""
    text = (folder / "manifest.json").read_bytes()
    manifest = json.loads(text)
    offsets = np.load(folder / "sequences" / "offsets.npy", allow_pickle=False)
    items = np.load(folder / "sequences" / "items.npy", allow_pickle=False)
    absent = manifest["items"] - len(np.unique(items))
    if absent:
        sys.exit(f"{folder}: {absent} items of the catalogue occur in no sequence; RecBole would not rank them")
    if np.diff(offsets).min() < 3:
        sys.exit(f"{folder}: a user has fewer than 3 items; prepare the dataset again")
    return Sequences(offsets, items, manifest, hashlib.sha256(text).hexdigest())


def write_atomic_files(sequences: Sequences, folder: Path) -> None:
    """RecBole's pre-split ("benchmark") atomic files; tokens are our user and item rows."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        with (folder / f"{NAME}.{split}.inter").open("w", encoding="utf-8") as out:
            out.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
            for user, position in sequences.positions(split):
                history = " ".join(map(str, sequences.history(user, position).tolist()))
                out.write(f"{user}\t{history}\t{sequences.items[position]}\n")


def check_rows(sequences: Sequences, loaders: dict[str, Any], to_row: np.ndarray) -> dict[str, int]:
    """Number of rows per split, after proving that what RecBole holds in memory are our rows, in our order."""
    counts = {}
    for split, loader in loaders.items():
        feat = loader._dataset.inter_feat
        users = loader._dataset.id2token("user_id", feat["user_id"].numpy()).astype(np.int64)
        histories, targets = to_row[feat["item_id_list"].numpy()], to_row[feat["item_id"].numpy()]
        lengths = feat["item_length"].numpy()
        expected = list(sequences.positions(split))
        assert len(expected) == len(users), f"{split}: {len(users)} rows in RecBole, {len(expected)} in ours"
        for row, (user, position) in enumerate(expected):
            history = sequences.history(user, position)
            assert users[row] == user, f"{split} row {row}: another user"
            assert targets[row] == sequences.items[position], f"{split} row {row}: another target"
            assert lengths[row] == len(history), f"{split} row {row}: another history length"
            assert np.array_equal(histories[row, : len(history)], history), f"{split} row {row}: another history"
            assert not histories[row, len(history) :].any(), f"{split} row {row}: items after the history"
        counts[split] = len(expected)
    assert counts["train"] == sequences.manifest["train_rows"], "training rows differ from the manifest's"
    assert counts["valid"] == counts["test"] == sequences.manifest["users"], "users differ from the manifest's"
    return counts
