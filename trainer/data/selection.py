"""Which interactions are kept: sampling of users, the iterated k-core, ordering. Pure functions of integer codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from trainer.data.format.manifest import CoreOn

Ints = NDArray[np.int64]

#: leave-one-out needs a training item, a validation target and a test target
MIN_ITEMS = 3


def sample_users(users: Ints, n_users: int, sample: int, seed: int) -> NDArray[np.bool_]:
    """Which rows belong to `sample` of the users 0..n_users-1, drawn without replacement. UserError: not enough."""
    if not 1 <= sample <= n_users:
        raise UserError(f"--sample-users {sample}: the source has {n_users} users; give 1 to {n_users}")
    chosen = np.zeros(n_users, np.bool_)
    chosen[np.random.default_rng(seed).choice(n_users, sample, replace=False)] = True
    return np.asarray(chosen[users])


def core_minima(k: int, on: CoreOn) -> tuple[int, int]:
    """Fewest rows of a user and of an item in the k-core."""
    return max(MIN_ITEMS, k if on in ("both", "users") else 0), k if on in ("both", "items") else 0


def k_core(users: Ints, items: Ints, k: int, on: CoreOn) -> NDArray[np.bool_]:
    """Rows of the largest subset in which every user has at least max(3, k if on users) rows and every item at least
    k (if on items). Dropping on one side may break the other, hence the iteration.
    """
    user_min, item_min = core_minima(k, on)
    keep = np.ones(len(users), np.bool_)
    while True:
        enough_user = np.bincount(users[keep], minlength=1) >= user_min
        enough_item = np.bincount(items[keep], minlength=1) >= item_min
        still = enough_user[users[keep]] & enough_item[items[keep]]
        if still.all():
            return keep
        keep[np.flatnonzero(keep)[~still]] = False


def codes(values: Ints) -> tuple[Ints, Ints]:
    """Dense codes 0..n-1 in order of first appearance, and the value of each code.

    values: (N,) integers of 0 and more; memory is taken for the largest, too.
    """
    first = np.full(int(values.max(initial=-1)) + 1, len(values))
    first[values[::-1]] = np.arange(len(values) - 1, -1, -1)  # of equal places, the last assignment stays
    there = np.flatnonzero(first < len(values))
    names = there[np.argsort(first[there])]
    first[names] = np.arange(len(names))
    return first[values], names
