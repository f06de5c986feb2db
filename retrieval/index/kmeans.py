"""The centroids of an index with lists: k-means on the sphere, in two levels where there are many.

One level compares each training point with each centroid in each iteration. Two levels first make sqrt(lists) parts,
and then the lists of each part on its own: for 4,000 lists this is a thirtieth of the products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from retrieval.index.base import Vectors

#: items for each list: below this FAISS warns that its k-means is poorly fitted
TRAINING_POINTS = 39
_ITERATIONS = 10
#: from so many lists on there are two levels
_TWO_LEVELS = 512


def centroids(faiss: Any, vectors: Vectors, lists: int) -> Vectors:
    """(lists, width) float32 of unit length, for `vectors` (I, width) float32; `lists` is at most I."""
    parts = _parts(lists)
    if parts == 1:
        return _kmeans(faiss, vectors, lists, TRAINING_POINTS)[0]
    points = _sample(vectors, TRAINING_POINTS * lists)
    _, part_of = _kmeans(faiss, points, parts)
    order = np.argsort(part_of, kind="stable")
    ends = np.bincount(part_of, minlength=parts).cumsum()
    upto = ends * lists // len(points)  # a part gets its share of the lists, so never more than it has points
    starts, before = np.concatenate([[0], ends[:-1]]), np.concatenate([[0], upto[:-1]])
    made = [
        _kmeans(faiss, points[order[start:end]], int(share))[0]
        for start, end, share in zip(starts, ends, upto - before, strict=True)
        if share
    ]
    return np.concatenate(made)


def products(items: int, lists: int) -> int:
    """Inner products that `centroids` takes."""
    points, parts = min(items, TRAINING_POINTS * lists), _parts(lists)
    return _ITERATIONS * points * (lists if parts == 1 else parts + -(-lists // parts))


def _parts(lists: int) -> int:
    return 1 if lists < _TWO_LEVELS else math.isqrt(lists)


def _sample(vectors: Vectors, size: int) -> Vectors:
    if len(vectors) <= size:
        return vectors
    return vectors[np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))]


def _kmeans(faiss: Any, points: Vectors, count: int, most: int | None = None) -> tuple[Vectors, Any]:
    """The centroids, and which of them is nearest to each point. most: points that are used for each centroid."""
    points = np.ascontiguousarray(points)
    # spherical, as FAISS's index_factory has it for inner products: long centroids would draw all
    made = faiss.Kmeans(
        points.shape[1], count, niter=_ITERATIONS, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=most or len(points),
    )  # fmt: skip
    made.train(points)
    return made.centroids, made.assign(points)[1] if most is None else None
