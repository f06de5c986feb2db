"""HNSW: a graph of near neighbours, searched from item to item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.options.base import at_least_one
from retrieval.index.base import IndexKind, Parameters, Vectors

_NEIGHBOURS = 32


@dataclass(frozen=True)
class Hnsw(IndexKind):
    """Each item has 32 neighbours. ef_search: width of the search; wider is slower and finds more."""

    ef_search: int = field(default=128, metadata={"help": "width of the search (128)"})

    def __post_init__(self) -> None:
        at_least_one(self, "ef_search")

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = self.ef_search
        return index, {"M": _NEIGHBOURS, "efSearch": self.ef_search}
