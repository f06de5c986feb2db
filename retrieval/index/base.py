"""The base class of all kinds of index: their options, and how they build an index. Imports neither torch nor faiss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Parameters = dict[str, int | float | str]
#: what an index finds of the exact first 20, unless another recall is asked for
RECALL_K, RECALL_TARGET = 20, 0.99
#: queries by which an effort is found; exact ranking of each costs as much as an inner product with every item
SAMPLE = 256


@dataclass(frozen=True)
class Effort:
    """How widely each search looks, which may be changed after the build: wider is slower and finds more.

    option: the field of the kind that fixes it; where that is None, `tune.find_effort` finds the value. parameter: its
    name in faiss.ParameterSpace, and in `index.json`. least: the first value that is tried.
    """

    option: str
    parameter: str
    least: int = 1


@dataclass(frozen=True)
class IndexKind(ABC):
    """A kind of FAISS index. A subclass is a frozen dataclass whose fields are its options.

    Every field has a default and a plain type: int, float, str, bool, or one of them with None. Each field becomes an
    option of `mealrec index`, with the help text of its metadata {"help": "..."}, if it has any. `__post_init__` checks
    the ranges and raises UserError.
    """

    #: whether an index of this kind finds what exact ranking finds; the others are approximate
    exact: ClassVar[bool] = False
    #: whether FAISS can move an index of this kind to a GPU
    gpu_form: ClassVar[bool] = False
    #: what `--recall` finds; None for kinds whose searches are all equally wide
    effort: ClassVar[Effort | None] = None
    #: whether the best of what is found by stored vectors, which are rounded, are chosen by the exact ones: such a kind
    #: has an option `rescore`, the candidates for each result, or None for as many as the recall needs
    rescored: ClassVar[bool] = False

    @property
    def effort_given(self) -> bool:
        """Whether there is nothing to find: the kind has no effort, or its option says how much."""
        return self.effort is None or getattr(self, self.effort.option) is not None

    def most_effort(self, index: Any) -> int:
        """The largest effort that can help a search in the FAISS index `index`."""
        return int(index.ntotal)

    def item_bytes(self, width: int) -> int:
        """About what the index holds of an item whose vector has so many numbers."""
        return 4 * width + 8

    def work(self, index: Any, queries: Vectors) -> float:
        """Inner products of a search in the FAISS index `index`, on average over `queries`; 0 if nobody needs it,
        because there is nothing `finer`."""
        del index, queries
        return 0.0

    def finer(self, index: Any, work: float, searches: int | None) -> IndexKind | None:
        """Options by which a search may be less work than in `index`, where it takes `work`; None if there are none.

        searches: how many the index is for, None for as many as will come: whether another build is repaid.
        """
        del index, work, searches
        return None

    @abstractmethod
    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        """An empty FAISS index by inner product, and its parameters by name.

        faiss: the module. vectors: (I - 1, width) float32 of the real items, for kinds that learn from them; the
        caller adds the vectors afterwards. Raises UserError if the options do not fit the items.
        """
