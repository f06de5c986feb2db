"""HNSW: a graph of near neighbours, searched from item to item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.options.base import at_least_one
from retrieval.index.base import Effort, IndexKind, Parameters, Vectors

_NEIGHBOURS = 32
# With FAISS's default of 40, graphs for inner products miss items of short vectors, and a wider search does not help.
# Recall@20 by `mealrec index --kind hnsw`, after `mealrec prepare synthetic --users 3000 --items 2000` and 3 epochs of
# SASRec: 0.943 with 40, 0.948 with 40 and --ef-search 256, 0.998 with 200 (2026-11-26)
_BUILD_WIDTH = 200
_NARROWEST = 16
#: a search that keeps more items in view costs as much as a look at thousands of vectors, and what it still misses
#: cannot be reached in the graph
_WIDEST = 4096


@dataclass(frozen=True)
class Hnsw(IndexKind):
    """Each item has 32 neighbours. ef_search: items kept in view of a search; None: as many as the recall needs."""

    ef_search: int | None = field(default=None, metadata={"help": "width of the search (as --recall needs)"})

    effort: ClassVar[Effort | None] = Effort("ef_search", "efSearch", _NARROWEST)

    def __post_init__(self) -> None:
        if self.ef_search is not None:
            at_least_one(self, "ef_search")

    def most_effort(self, index: Any) -> int:
        return max(1, min(_WIDEST, int(index.ntotal)))

    def item_bytes(self, width: int) -> int:
        return 4 * width + 4 * 2 * _NEIGHBOURS  # FAISS gives an item twice as many places in the lowest layer

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_WIDTH
        index.hnsw.efSearch = self.ef_search or _NARROWEST
        return index, {"M": _NEIGHBOURS, "efConstruction": _BUILD_WIDTH, "efSearch": index.hnsw.efSearch}
