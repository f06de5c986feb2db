"""Flat: every item is compared, so the answer is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from retrieval.index.base import IndexKind, Parameters, Vectors


@dataclass(frozen=True)
class Flat(IndexKind):
    """Exact search."""

    exact: ClassVar[bool] = True
    gpu_form: ClassVar[bool] = True

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        return faiss.IndexFlatIP(vectors.shape[1]), {}
