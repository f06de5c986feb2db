"""Recall of an index against exact ranking, and the least effort of its searches that gives the recall asked for.

faiss.ParameterSpace.explore does the second by time as well: it leaves out settings that were slow when it tried them,
so two runs of one seed could choose differently. Here only what is found decides; faiss sets the parameter.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.exact import exact_topk
from retrieval.index.base import SAMPLE, IndexKind, Vectors

Ids = NDArray[np.int64]
Number = TypeVar("Number", np.float32, np.int64)
_AS_MUCH = 0.001
_STEPS = 8  # an effort is found to this part of itself


@dataclass(frozen=True)
class Exact:
    """The exact first k of some queries. users: (U, D); items: (I, D) with row 0 padding; scores, ids: (U, k)."""

    users: Vectors
    items: Vectors
    scores: Vectors
    ids: Ids

    @staticmethod
    def of(users: Vectors, items: Vectors, k: int) -> Exact:
        """Rank all items. Raises UserError if a vector is not finite."""
        scores, ids = exact_topk(torch.from_numpy(users), torch.from_numpy(items), min(k, len(items) - 1))
        return Exact(users, items, scores.numpy(), ids.numpy())

    def found(self, ids: Ids) -> NDArray[np.float64]:
        """(U,) the share of each query's k items that are in `ids`, (U, k) item rows, 0 where an index found none.

        An item that ties with the k-th exact score counts as found.
        """
        same = (ids[:, :, None] == self.ids[:, None, :]).any(axis=2)
        scores = np.einsum("bd,bkd->bk", self.users, self.items[ids])
        last = self.scores[:, -1:]
        tied = scores >= last - 1e-6 * np.abs(last)
        found: NDArray[np.float64] = ((same | tied) & (ids > 0)).mean(axis=1)
        return found


@dataclass(frozen=True)
class Found:
    """The effort that was found, the recall that it has on the sample, and whether that is what was asked for."""

    effort: int
    recall: float
    enough: bool


def sample(vectors: NDArray[Number], size: int = SAMPLE, seed: int = 0) -> NDArray[Number]:
    """At most `size` random rows of `vectors`, in their order."""
    if len(vectors) <= size:
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))]


def find_effort(faiss: Any, index: Any, kind: IndexKind, exact: Exact, recall: float) -> Found:
    """Set the least effort of the FAISS index `index` by which it finds `recall` (0 to 1) of `exact`.

    The effort is doubled until it is enough, and then bisected. It is enough where the mean recall, less its standard
    error, is not below `recall`: so other queries find as much. Where more effort finds no more of it, and that is not
    enough (of `ivfpq`, whose vectors are rounded), the least that finds as much stays set.
    """
    assert kind.effort is not None
    parameter, k, most = kind.effort.parameter, exact.ids.shape[1], kind.most_effort(index)
    space = faiss.ParameterSpace()

    @functools.cache
    def found_with(effort: int) -> tuple[float, float]:
        """The mean recall, and that less its standard error."""
        space.set_index_parameter(index, parameter, effort)
        each = exact.found(index.search(exact.users, k)[1].astype(np.int64) + 1)
        return float(each.mean()), float(each.mean() - each.std() / len(each) ** 0.5)

    low, high = 0, min(kind.effort.least, most)
    while found_with(high)[1] < recall and high < most:
        low, high = high, min(2 * high, most)
    mean, sure = found_with(high)
    enough = sure >= recall
    # index 0: the mean, where that is all there is to reach
    wanted, which = (recall, 1) if enough else (mean - _AS_MUCH, 0)
    low = low if enough else 0
    while high - low > max(1, low // _STEPS):
        middle = (low + high) // 2
        low, high = (low, middle) if found_with(middle)[which] >= wanted else (middle, high)
    space.set_index_parameter(index, parameter, high)
    return Found(high, found_with(high)[0], enough)
