"""A dataset written by hand, of which tests know every value, and damage to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.format.content import Content
from trainer.data.format.manifest import Manifest
from trainer.data.format.writer import write_dataset

U, N_ITEMS, L = 40, 1200, 5
RAW = np.random.default_rng(0).normal(7, 3, (N_ITEMS, 2, 4)).astype(np.float32)
PRESENT = np.arange(N_ITEMS) % 7 != 0


def interactions() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 40, U))]).astype(np.int64)
    return offsets, rng.integers(1, N_ITEMS + 1, offsets[-1]).astype(np.int32)


def write(out: Path, **changes: Any) -> Manifest:
    offsets, items = interactions()

    def sequence(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return np.where(PRESENT[start:stop, None, None], RAW[start:stop], np.nan), PRESENT[start:stop]

    def text(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values = np.full((stop - start, 3), 2.5)
        values[:, 0] += np.arange(start, stop)  # the others are constant
        return values, np.ones(stop - start, np.bool_)

    given_: dict[str, Any] = {
        "user_ids": [f"user {u}" for u in range(U)],
        "item_ids": [f"item {i}" for i in range(N_ITEMS)],
        "item_titles": [None if i % 2 else f"title {i}" for i in range(N_ITEMS)],
        "offsets": offsets,
        "items": items,
        "content": {
            "sequence": Content((2, 4), sequence, "frames", "test"),
            "text": Content((3,), text, "title", "test"),
        },
        "max_length": L,
        "dropped": {"duplicate rows": 2},
    }
    return write_dataset(out, **(given_ | changes))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-600] ^= 1
    path.write_bytes(data)
