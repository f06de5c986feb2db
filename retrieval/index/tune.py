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
_GATHERED = 1 << 22  # numbers of item vectors in memory at a time
#: most candidates for each result: more are no longer a small part of what a search compares
MOST_CANDIDATES = 64


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


def rescored(users: Vectors, items: Vectors, ids: Ids, k: int) -> tuple[Vectors, Ids]:
    """The first k of `ids` by exact inner products: scores and item rows, (U, k) each, best first.

    users: (U, D); items: (I, D); ids: (U, C) item rows, 0 where an index found none. Of equal scores, the lower row
    comes first. Where fewer than k were found, the row ends with score -inf and item 0.
    """
    best, best_ids = np.full((len(users), k), -np.inf, np.float32), np.zeros((len(users), k), np.int64)
    width = min(k, ids.shape[1])
    step = max(1, _GATHERED // (ids.shape[1] * items.shape[1]))
    for start in range(0, len(users), step):
        rows = np.sort(ids[start : start + step], axis=1)
        scores = np.einsum("bd,bcd->bc", users[start : start + step], items[rows])
        scores[rows == 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        best[start : start + step, :width] = np.take_along_axis(scores, order, axis=1)
        best_ids[start : start + step, :width] = np.take_along_axis(rows, order, axis=1)
    return best, best_ids


def sample(vectors: NDArray[Number], size: int = SAMPLE, seed: int = 0) -> NDArray[Number]:
    """At most `size` random rows of `vectors`, in their order."""
    if len(vectors) <= size:
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))]


def find_effort(faiss: Any, index: Any, kind: IndexKind, exact: Exact, recall: float, candidates: int = 1) -> Found:
    """Set the least effort of the FAISS index `index` by which it finds `recall` (0 to 1) of `exact`.

    The effort is doubled until it is enough, and then bisected. It is enough where the mean recall, less its standard
    error, is not below `recall`: so other queries find as much. Where more effort finds no more of it, and that is not
    enough (of `ivfpq`, whose vectors are rounded), the least that finds as much stays set. candidates: for each result,
    of which the best by exact vectors are taken.
    """
    assert kind.effort is not None
    parameter, most = kind.effort.parameter, kind.most_effort(index)
    space = faiss.ParameterSpace()

    @functools.cache
    def found_with(effort: int) -> tuple[float, float]:
        space.set_index_parameter(index, parameter, effort)
        return _recall(exact, _ids(index, exact, candidates))

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


def find_candidates(faiss: Any, index: Any, kind: IndexKind, exact: Exact, recall: float) -> tuple[Found, int]:
    """`find_effort` for an index whose results are ranked again by exact vectors, and the candidates for each result.

    First the effort by which the items are among as many candidates as are ever taken, with half of the misses that
    `recall` allows; then the least power of two of candidates that has the recall with this effort.
    """
    widest = find_effort(faiss, index, kind, exact, (1 + recall) / 2, MOST_CANDIDATES)
    everything = _ids(index, exact, MOST_CANDIDATES)
    most, most_sure = _recall(exact, everything)
    enough = most_sure >= recall
    wanted, which = (recall, 1) if enough else (most - _AS_MUCH, 0)
    number = 1
    while number < MOST_CANDIDATES and _recall(exact, everything[:, : exact.ids.shape[1] * number])[which] < wanted:
        number *= 2
    found = _recall(exact, everything[:, : exact.ids.shape[1] * number])[0]
    return Found(widest.effort, found, enough), number


def _ids(index: Any, exact: Exact, candidates: int) -> Ids:
    """(U, k x candidates) item rows that the FAISS index finds for the users of `exact`, best first."""
    depth = min(exact.ids.shape[1] * candidates, int(index.ntotal))
    ids: Ids = index.search(exact.users, depth)[1].astype(np.int64) + 1
    return ids


def _recall(exact: Exact, ids: Ids) -> tuple[float, float]:
    """The mean recall of the exact first k among `ids`, ranked exactly where there are more; and that less its standard
    error."""
    k = exact.ids.shape[1]
    each = exact.found(ids if ids.shape[1] == k else rescored(exact.users, exact.items, ids, k)[1])
    return float(each.mean()), float(each.mean() - each.std() / len(each) ** 0.5)
