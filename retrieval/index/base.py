"""The base class of all kinds of index: their options, and how they build an index. Imports neither torch nor faiss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Parameters = dict[str, int | float | str]


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

    @abstractmethod
    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        """An empty FAISS index by inner product, and its parameters by name.

        faiss: the module. vectors: (I - 1, width) float32 of the real items, for kinds that learn from them; the
        caller adds the vectors afterwards. Raises UserError if the options do not fit the items.
        """
