"""The items whose vectors are most like those of one item: exact, in two passes over the shards.

Shapes: N items of a block, V width of a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.options.base import ContentField
from trainer.data.features import Features, blocks
from trainer.progress import Progress

Vectors = NDArray[np.float64]

#: fields with one vector per item: what neighbours are found by
FIELDS: tuple[ContentField, ...] = ("visual", "text")


class Neighbour(NamedTuple):
    """row: of the features' items (1..n); similarity: -1..1."""

    row: int
    similarity: float


def nearest(features: Features, row: int, k: int) -> dict[ContentField, list[Neighbour]]:
    """The k items most like the one in `row`, best first, by each of FIELDS that the features have.

    Similarity is the cosine of vectors that are standardised per dimension over all items of the features, in float64;
    0 for an item whose vector is the mean. Equal ones: the lower row first. The item itself is left out. Holds one
    block, and one number per item and field.
    Raises UserError naming the shard that is missing or damaged.
    """
    fields = [field for field in FIELDS if field in features.manifest.content]
    items = features.manifest.items
    progress = Progress(f"comparing with {features.root}", 2 * items)
    moments = {field: _Moments(features.manifest.content[field].shape[-1]) for field in fields}
    own: dict[ContentField, Vectors] = {}
    for block in blocks(features):
        first, last = int(block["rows"][0]), int(block["rows"][-1])
        for field in fields:
            vectors = block[field].astype(np.float64)
            moments[field].add(vectors)
            if first <= row <= last:
                own[field] = vectors[row - first : row - first + 1]
        progress.update(last)
    scores = {field: np.empty(items) for field in fields}
    for block in blocks(features):
        for field in fields:
            of_all, of_own = (moments[field].directions(x) for x in (block[field].astype(np.float64), own[field]))
            # not a matmul: equal vectors get equal scores, wherever in a block they are
            scores[field][block["rows"] - 1] = (of_all * of_own).sum(axis=1)
        progress.update(items + int(block["rows"][-1]))
    progress.close()
    return {field: _best(scores[field], row, k) for field in fields}


class _Moments:
    """Mean and sum of squared deviations of blocks of vectors (Chan, Golub and LeVeque 1983)."""

    def __init__(self, width: int) -> None:
        self._n = 0
        self._mean_V, self._squares_V = np.zeros(width), np.zeros(width)

    def add(self, x_NV: Vectors) -> None:
        n = self._n + len(x_NV)
        mean_V = x_NV.mean(axis=0)
        step_V = mean_V - self._mean_V
        self._squares_V += ((x_NV - mean_V) ** 2).sum(axis=0) + step_V**2 * (self._n * len(x_NV) / n)
        self._mean_V += step_V * (len(x_NV) / n)
        self._n = n

    def directions(self, x_NV: Vectors) -> Vectors:
        """Standardised, of length 1; zeros where nothing is left. A dimension that never varies is not scaled."""
        std_V = np.sqrt(self._squares_V / self._n)
        x_NV = (x_NV - self._mean_V) / np.where(std_V > 1e-6, std_V, 1.0)
        length_N1 = np.sqrt((x_NV**2).sum(axis=1, keepdims=True))
        return np.asarray(x_NV / np.where(length_N1 > 0, length_N1, 1.0))


def _best(scores: NDArray[np.float64], row: int, k: int) -> list[Neighbour]:
    order = np.argsort(-scores, kind="stable") + 1
    return [Neighbour(int(near), float(scores[near - 1])) for near in order[: k + 1] if near != row][:k]
