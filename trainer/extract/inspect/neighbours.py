"""The items whose vectors are most like those of one item: exact, in two passes over the shards.

Shapes: N items of a block, V width of a vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.options.base import ContentField
from trainer.data.features import Features, blocks
from trainer.data.mean_and_deviation import MeanAndDeviation
from trainer.progress import Progress

Vectors = NDArray[np.float64]

#: fields with one vector per item, by which neighbours are found
FIELDS: tuple[ContentField, ...] = ("visual", "text")


class SimilarRow(NamedTuple):
    """row: of the features' items (1..n); similarity: -1..1."""

    row: int
    similarity: float


def nearest(features: Features, row: int, k: int) -> dict[ContentField, list[SimilarRow]]:
    """The k items most like the one in `row`, best first, by each of FIELDS that the features have.

    Similarity is the cosine of vectors that are standardised per dimension over all items of the features, in float64;
    0 for an item whose vector is the mean. Equal ones: the lower row first. The item itself is left out. Memory: one
    block of vectors, and one number per item and field.
    Raises UserError naming the shard that is missing or damaged.
    """
    fields = [field for field in FIELDS if field in features.manifest.content]
    items = features.manifest.items
    progress = Progress(f"comparing with {features.root}", 2 * items)
    of_all = {field: MeanAndDeviation(features.manifest.content[field].shape[-1]) for field in fields}
    own: dict[ContentField, Vectors] = {}
    for block in blocks(features):
        first, last = int(block["rows"][0]), int(block["rows"][-1])
        for field in fields:
            vectors = block[field].astype(np.float64)
            of_all[field].add(vectors)
            if first <= row <= last:
                own[field] = vectors[row - first : row - first + 1]
        progress.update(last)
    scores = {field: np.empty(items) for field in fields}
    for block in blocks(features):
        for field in fields:
            theirs, ours = (_directions(x, of_all[field]) for x in (block[field], own[field]))
            # not a matmul: equal vectors get equal scores, wherever in a block they are
            scores[field][block["rows"] - 1] = (theirs * ours).sum(axis=1)
        progress.update(items + int(block["rows"][-1]))
    progress.close()
    return {field: _best(scores[field], row, k) for field in fields}


def _directions(vectors: NDArray[Any], of_all: MeanAndDeviation) -> Vectors:
    """(N, V) vectors, standardised and then of length 1; zeros for a vector that is the mean."""
    x_NV = (vectors.astype(np.float64) - of_all.mean_V) / of_all.deviation_V
    length_N1 = np.sqrt((x_NV**2).sum(axis=1, keepdims=True))
    return np.asarray(x_NV / np.where(length_N1 > 0, length_N1, 1.0))


def _best(scores: NDArray[np.float64], row: int, k: int) -> list[SimilarRow]:
    order = np.argsort(-scores, kind="stable") + 1
    return [SimilarRow(int(near), float(scores[near - 1])) for near in order[: k + 1] if near != row][:k]
