"""Leave-one-out, derived from offsets alone: pure functions of (offsets, items) as in docs/dataset-format.md.

Of a user's n items the last is the test target, the one before the validation target, the first n - 2 are training
items; training row r is a prefix of them and its next item.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["validation", "test"]
SPLITS: tuple[Split, Split] = ("validation", "test")

Ints = NDArray[np.int64]
#: interactions that are counted at a time
_COUNTED = 1 << 26


def row_offsets(offsets: Ints) -> Ints:
    """(U + 1,) int64: user u has training rows row_offsets[u] .. row_offsets[u + 1], max(n - 3, 0) of them."""
    return np.concatenate([[0], np.cumsum(np.maximum(np.diff(offsets) - 3, 0))]).astype(np.int64)


def target_positions(offsets: Ints, split: Split) -> Ints:
    """(U,) positions in `items` of each user's target."""
    return offsets[1:] - (1 if split == "test" else 2)


def train_counts(offsets: Ints, items: NDArray[np.int32], n_items: int) -> Ints:
    """(I + 1,) int64: how often each item row occurs at training positions."""
    counts = np.zeros(n_items + 1, np.int64)
    for start in range(0, len(items), _COUNTED):  # a piece at a time: numpy counts 8 bytes for each item
        counts += np.bincount(items[start : start + _COUNTED], minlength=n_items + 1)
    for split in SPLITS:
        counts -= np.bincount(items[target_positions(offsets, split)], minlength=n_items + 1)
    return counts


def distinct_pairs(offsets: Ints, items: NDArray[np.int32], n_items: int, block: int = 1 << 16) -> int:
    """How many different (user, item) there are: an item that a user watched twice counts once. block: users at a time,
    which bounds memory."""
    found = 0
    for first in range(0, len(offsets) - 1, block):
        ends = offsets[first : first + block + 1]
        users = np.repeat(np.arange(len(ends) - 1, dtype=np.int64), np.diff(ends))
        found += len(np.unique(users * (n_items + 1) + items[ends[0] : ends[-1]]))
    return found


def cold_mask(offsets: Ints, items: NDArray[np.int32], counts: Ints, split: Split) -> NDArray[np.bool_]:
    """(U,) bool: the user's target of this split never occurs at a training position."""
    return np.asarray(counts[items[target_positions(offsets, split)]] == 0)


def training_rows(
    rows: Ints,
    offsets: Ints,
    items: NDArray[np.int32],
    starts: Ints,
    max_length: int,
    behaviours: NDArray[np.uint8] | None = None,
) -> dict[str, NDArray[Any]]:
    """user, history (n, L), length, target of training rows `rows` (n,), and behaviours (n, L) where given.

    `starts` is `row_offsets(offsets)`.
    """
    users = np.searchsorted(starts, rows, side="right") - 1
    position = offsets[users] + (rows - starts[users]) + 1
    length = np.minimum(position - offsets[users], max_length)
    column = np.arange(max_length)
    filled = column < length[:, None]
    at = np.where(filled, (position - length)[:, None] + column, 0)
    shown = {} if behaviours is None else {"behaviours": np.where(filled, behaviours[at], 0).astype(np.uint8)}
    history = np.where(filled, items[at], 0)
    return {
        "user": users.astype(np.int32),
        "history": history.astype(np.int32),
        "length": length.astype(np.int16),
        "target": items[position].astype(np.int32),
        **shown,
    }
