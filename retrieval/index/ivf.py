"""IVF: k-means puts every item in a list, and a query is compared with the items of the nearest lists."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from models.errors import UserError
from models.options.base import at_least_one
from retrieval.index import kmeans
from retrieval.index.base import Effort, IndexKind, Parameters, Vectors

_FINER = 4  # times as many lists, where another number is tried
_FEWEST_ITEMS = 10  # of a list, on average, for lists that are tried


def number_of_lists(items: int) -> int:
    """4 sqrt(items), which FAISS's guidelines advise, or fewer so that k-means has enough items for each list."""
    return max(1, min(int(4 * math.sqrt(items)), items // kmeans.TRAINING_POINTS))


def build_cost(items: int, lists: int | None = None) -> int:
    """Inner products that a build takes: those of k-means, and one of every item with every list."""
    lists = number_of_lists(items) if lists is None else lists
    return kmeans.products(items, lists) + items * lists


def put_lists(faiss: Any, index: Any, nprobe: int | None, vectors: Vectors) -> Parameters:
    """Give a FAISS index with lists their centroids, and say how many are searched; returns both as parameters.

    Raises UserError if nprobe is more than there are lists.
    """
    nlist = int(index.nlist)
    if nprobe is not None and nprobe > nlist:
        raise UserError(f"nprobe is {nprobe}, but {len(vectors):,} items make {nlist} lists; choose 1 to {nlist}")
    index.quantizer.add(kmeans.centroids(faiss, vectors, nlist))  # FAISS then leaves the lists as they are
    index.nprobe = nprobe or 1
    return {"nlist": nlist, "nprobe": index.nprobe}


@dataclass(frozen=True)
class OfLists(IndexKind):
    """What all kinds of index with lists share. nprobe: number of lists that a query searches; None: as many as the
    recall needs, or as still help. lists: number of lists; None: about 4 sqrt(I), or more where that searches less."""

    nprobe: int | None = field(default=None, metadata={"help": "lists searched (as --recall needs)"})
    lists: int | None = field(default=None, metadata={"help": "number of lists (chosen by trial)"})

    gpu_form: ClassVar[bool] = True
    effort: ClassVar[Effort | None] = Effort("nprobe", "nprobe")

    def __post_init__(self) -> None:
        for option in ("nprobe", "lists"):
            if getattr(self, option) is not None:
                at_least_one(self, option)

    def most_effort(self, index: Any) -> int:
        return int(index.nlist)

    def count_of_lists(self, items: int) -> int:
        """The lists of so many items. Raises UserError if more were asked for."""
        if self.lists is not None and self.lists > items:
            raise UserError(f"lists is {self.lists:,}, and there are {items:,} items; choose 1 to {items:,}")
        return self.lists or number_of_lists(items)

    def work(self, index: Any, queries: Vectors) -> float:
        _, nearest = index.quantizer.search(queries, index.nprobe)
        sizes = np.array([index.invlists.list_size(n) for n in range(index.nlist)])
        return float(index.nlist + sizes[nearest].sum(axis=1).mean())

    def finer(self, index: Any, work: float, searches: int | None) -> OfLists | None:
        """More lists, if to find the nearest of them is not most of the `work` yet, and their build is repaid."""
        items, lists = int(index.ntotal), _FINER * int(index.nlist)
        spared = work - lists
        if self.lists is not None or spared <= work / 2 or lists * _FEWEST_ITEMS > items:
            return None
        if searches is not None and build_cost(items, lists) > searches * spared:
            return None
        return replace(self, lists=lists)


@dataclass(frozen=True)
class Ivf(OfLists):
    """Lists of whole vectors."""

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        count, width = vectors.shape
        lists = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(lists, width, self.count_of_lists(count), faiss.METRIC_INNER_PRODUCT)
        parameters = put_lists(faiss, index, self.nprobe, vectors)
        index.train(vectors)
        return index, parameters
