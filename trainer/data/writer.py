"""Write a prepared dataset folder (docs/dataset-format.md) from sequences and raw content, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contract import ContentField
from trainer.data.manifest import Core, Manifest


@dataclass(frozen=True)
class Content:
    """Raw (not standardised) content of one field, read block by block, more than once: `read` is a pure function.

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
    raise NotImplementedError
