"""Count how often each item is in the top-k lists of all users. Metrics of lists are computed from these counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from retrieval.metrics.base import Exposure
from trainer.evaluation.top_lists import TopLists
from trainer.process import world


class ExposureCounter:
    """Counts items for every k, with and without the history. It needs 16 bytes per item and k for any number of
    users. Counts are whole numbers, so their sum over workers does not depend on shares or batches.
    """

    def __init__(self, ks: Sequence[int], n_items: int, device: torch.device) -> None:
        """n_items: item rows, including padding. device: a device on which the workers can sum tensors."""
        self._ks = ks
        self._counts = torch.zeros(2, len(ks), n_items, dtype=torch.int64, device=device)

    def add(self, lists: TopLists) -> None:
        """Count the lists of a batch of users. Their length is the largest k."""
        for counts_KI, ids in zip(self._counts, lists, strict=True):
            for counts_I, k in zip(counts_KI, self._ks, strict=True):
                shown = ids[:, :k].reshape(-1).to(counts_I.device)
                counts_I.index_add_(0, shown, torch.ones_like(shown))

    def gather(self, users: int, trained: NDArray[np.int64]) -> tuple[list[Exposure], list[Exposure]]:
        """(exposures out of all items, exposures with the history masked), one per k, over all workers. Collective.

        users: the total number of users. trained: (I,) training interactions of each item row.
        """
        if world()[1] > 1:
            dist.all_reduce(self._counts)
        self._counts[:, :, 0] = 0  # row 0 fills up lists that were too short
        everything, masked = (
            [Exposure(k, users, shown, trained) for k, shown in zip(self._ks, counts, strict=True)]
            for counts in self._counts.cpu().numpy()
        )
        return everything, masked
