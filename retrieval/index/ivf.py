"""IVF: k-means puts every item in a list, and a query is compared with the items of the nearest lists."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.errors import UserError
from models.options.base import at_least_one
from retrieval.index.base import IndexKind, Parameters, Vectors

_TRAINING_POINTS = 39  # per list: below this FAISS warns that its k-means is poorly fitted


@dataclass(frozen=True)
class Ivf(IndexKind):
    """About 4 sqrt(I) lists. nprobe: number of lists that a query searches; None means an eighth of all lists."""

    nprobe: int | None = field(default=None, metadata={"help": "lists searched (an eighth of all)"})

    gpu_form: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nprobe is not None:
            at_least_one(self, "nprobe")

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        count, width = vectors.shape
        nlist = max(1, min(int(4 * math.sqrt(count)), count // _TRAINING_POINTS))
        probes = max(1, nlist // 8) if self.nprobe is None else self.nprobe
        if probes > nlist:
            raise UserError(f"nprobe is {probes}, but {count:,} items make {nlist} lists; choose 1 to {nlist}")
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, nlist, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = probes
        index.train(vectors)
        return index, {"nlist": nlist, "nprobe": probes}
