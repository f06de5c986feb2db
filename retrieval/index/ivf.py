"""IVF: k-means puts every item in a list, and a query is compared with the items of the nearest lists."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.errors import UserError
from models.options.base import at_least_one
from retrieval.index.base import Effort, IndexKind, Parameters, Vectors

_TRAINING_POINTS = 39  # per list: below this FAISS warns that its k-means is poorly fitted
_ITERATIONS = 10


def number_of_lists(items: int) -> int:
    """4 sqrt(items), which FAISS's guidelines advise, or fewer so that k-means has enough items for each list."""
    return max(1, min(int(4 * math.sqrt(items)), items // _TRAINING_POINTS))


def build_cost(items: int) -> int:
    """Inner products that a build takes: those of k-means, and one of every item with every list."""
    lists = number_of_lists(items)
    return _ITERATIONS * min(items, _TRAINING_POINTS * lists) * lists + items * lists


def prepare_lists(index: Any, nprobe: int | None, items: int) -> Parameters:
    """Set how k-means makes the lists of a FAISS index, and how many are searched; returns both as parameters.

    Raises UserError if nprobe is more than there are lists.
    """
    nlist = int(index.nlist)
    if nprobe is not None and nprobe > nlist:
        raise UserError(f"nprobe is {nprobe}, but {items:,} items make {nlist} lists; choose 1 to {nlist}")
    index.cp.max_points_per_centroid = _TRAINING_POINTS
    index.cp.niter = _ITERATIONS
    index.cp.spherical = True  # as FAISS's index_factory has it for inner products: long centroids would draw all
    index.nprobe = nprobe or 1
    return {"nlist": nlist, "nprobe": index.nprobe}


@dataclass(frozen=True)
class OfLists(IndexKind):
    """What all kinds of index with lists share. nprobe: number of lists that a query searches; None: as many as the
    recall needs, or as still help."""

    nprobe: int | None = field(default=None, metadata={"help": "lists searched (as --recall needs)"})

    gpu_form: ClassVar[bool] = True
    effort: ClassVar[Effort | None] = Effort("nprobe", "nprobe")

    def __post_init__(self) -> None:
        if self.nprobe is not None:
            at_least_one(self, "nprobe")

    def most_effort(self, index: Any) -> int:
        return int(index.nlist)


@dataclass(frozen=True)
class Ivf(OfLists):
    """About 4 sqrt(I) lists of whole vectors."""

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        count, width = vectors.shape
        lists = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(lists, width, number_of_lists(count), faiss.METRIC_INNER_PRODUCT)
        parameters = prepare_lists(index, self.nprobe, count)
        index.train(vectors)
        return index, parameters
