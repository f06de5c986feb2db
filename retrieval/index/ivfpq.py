"""IVFPQ: lists as of IVF, in which an item takes a few bytes instead of four for each coordinate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.errors import UserError
from models.options.base import at_least_one
from retrieval.index.base import Parameters, Vectors
from retrieval.index.ivf import OfLists, put_lists

_BITS = 8
#: candidates for each result where nprobe is given and nothing is found by trial
_CANDIDATES = 8


@dataclass(frozen=True)
class IvfPq(OfLists):
    """Product quantization (Jegou et al. 2011): a vector is cut into pieces, and each piece is rounded to one of 256.

    bytes: pieces, and so bytes, of an item; None: one for every two coordinates, an eighth of the memory of `ivf`.
    rescore: for each item that is to be found, so many are found by their rounded vectors, and the best of these by
    their exact ones, which the model has; None: as many as the recall needs, or 8 where nprobe is given.
    """

    bytes: int | None = field(default=None, metadata={"help": "bytes of an item, a divisor of its width (width / 2)"})
    rescore: int | None = field(
        default=None,
        metadata={"help": "candidates for each result, ranked exactly (as --recall needs; 8 with --nprobe)"},
    )

    rescored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("bytes", "rescore"):
            if getattr(self, option) is not None:
                at_least_one(self, option)

    def item_bytes(self, width: int) -> int:
        return (self.bytes or max(1, width // 2)) + 8

    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        count, width = vectors.shape
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        pieces = max(n for n in divisors if n <= max(1, width // 2)) if self.bytes is None else self.bytes
        if pieces not in divisors:
            raise UserError(f"bytes is {pieces}, which does not divide the width {width}; choose of {divisors}")
        bits = min(_BITS, count.bit_length() - 1)  # k-means needs as many items as a piece has values
        lists = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFPQ(lists, width, self.count_of_lists(count), pieces, bits, faiss.METRIC_INNER_PRODUCT)
        parameters = put_lists(faiss, index, self.nprobe, vectors)
        index.pq.cp.min_points_per_centroid = 1  # small catalogues are no reason for a warning on stderr
        index.train(vectors)
        return index, {**parameters, "bytes": pieces, "bits": bits, "rescore": self._candidates()}

    def _candidates(self) -> int:
        """0 where they are yet to be found."""
        return self.rescore or (0 if self.nprobe is None else _CANDIDATES)
