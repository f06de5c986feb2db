"""Raw content of a field, block by block: what is checked of it, and its mean and deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import console
from models.errors import UserError
from trainer.data.mean_and_deviation import MeanAndDeviation
from trainer.progress import Progress

_BLOCK_BYTES = 32 << 20
#: the largest number in float16
_LARGEST = 65504.0
#: share of the variance of a dimension that rounding to float16 may take without a warning
_MOST_LOST = 0.01
#: a variance that is nothing but the rounding of float64
_NOTHING = 1e-20


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


def blocks(contents: Iterable[Content], n_items: int, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of items, a multiple of `step` long, whose raw values fit into 32 MiB for the widest content."""
    widest = max((int(np.prod(content.shape)) * 4 for content in contents), default=4)
    size = max(1, _BLOCK_BYTES // widest // step) * step
    for start in range(0, n_items, size):
        yield start, min(start + size, n_items)


def checked(field: str, content: Content, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Items start..stop-1, zeros for an item that has no such content, and which have it.

    Raises UserError for a value that is not finite, or beyond float16, in which the dataset holds it.
    """
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


def statistics(field: str, content: Content, counts: NDArray[np.int64], step: int) -> tuple[MeanAndDeviation, int]:
    """Mean and deviation over items with training occurrences and content, and how many items have no content.

    Of the values in float16. counts: (I + 1,) training occurrences by item row. Raises UserError if the content tells
    no item from another: none has any, or all have the same. Warns if float16 keeps too little of what tells items
    apart.
    """
    width = content.shape[-1]
    found, lost = MeanAndDeviation(width), MeanAndDeviation(width)
    missing, differ = 0, False
    first: NDArray[np.float16] | None = None
    n_items = len(counts) - 1
    progress = Progress(f"statistics of {field}", n_items)
    for start, stop in blocks([content], n_items, step):
        raw, present = checked(field, content, start, stop)
        values = raw.astype(np.float16)
        missing += int((~present).sum())
        if first is None and present.any():
            first = values[np.argmax(present)]
        differ = differ or bool((values[present] != first).any())
        used = present & (counts[start + 1 : stop + 1] > 0)
        kept_NV = values[used].reshape(-1, width).astype(np.float64)
        found.add(kept_NV)
        lost.add(raw[used].reshape(-1, width) - kept_NV)
        progress.update(stop)
    progress.close()
    if not differ and n_items - missing != 1:  # a single vector may be the only one that there is
        raise UserError(_of_no_use(field, content, None if first is None else bool(first.any())))
    _warn_of_rounding(field, found, lost)
    return found, missing


def _warn_of_rounding(field: str, kept: MeanAndDeviation, lost: MeanAndDeviation) -> None:
    """kept: of the values in float16; lost: of what they lack of the raw ones."""
    most_V = _MOST_LOST * (kept.variance_V + lost.variance_V)
    poor = int((lost.variance_V > np.maximum(most_V, _NOTHING)).sum())
    if poor:
        console.warn(
            f"content {field!r}: {poor} of {len(most_V)} dimensions lie so far from 0, for how little they vary, that "
            f"half precision (float16) loses over {_MOST_LOST:.0%} of their variance; subtract each dimension's mean "
            "first"
        )


def _of_no_use(field: str, content: Content, nonzero: bool | None) -> str:
    """What is wrong with content that is the same for all items. nonzero: whether it is not 0; None if none has any."""
    found = {None: "no item has any", False: "every item has a zero vector", True: "all items have the same vector"}
    return (
        f"content {field!r} ({content.kind}, {content.encoder}) tells no item from another: {found[nonzero]}; "
        "correct the vectors, or prepare the dataset without them"
    )
