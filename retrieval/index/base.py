"""What every kind of index is: its options, and how an index is made. Nothing here imports torch or faiss."""

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

    Every field has a default and a type of plain values (int, float, str, bool, or one of them and None), and may have
    metadata {"help": "..."}: each is an option of `mealrec index`. `__post_init__` checks ranges and raises UserError.
    """

    #: whether FAISS can move an index of this kind to a GPU
    gpu_form: ClassVar[bool] = False

    @abstractmethod
    def build(self, faiss: Any, vectors: Vectors) -> tuple[Any, Parameters]:
        """A FAISS index by inner product, still without items, and what it was made with, by name.

        faiss: the module. vectors: (I - 1, width) float32 of the real items, for kinds that learn from
        them; they are added afterwards. Raises UserError where the options do not fit the items.
        """
