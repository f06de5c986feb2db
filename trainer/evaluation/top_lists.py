"""What a ranker finds besides ranks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TopLists(NamedTuple):
    """The top items of each user, (B, k) int64 item rows, best first, 0 where there are no more: out of all items, and
    without the user's own history.
    """

    all_items: Tensor
    history_masked: Tensor
