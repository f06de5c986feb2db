"""How often each item is in the top-k lists of all users: what metrics of lists are computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from retrieval.metrics.base import Exposure
from trainer.evaluation.rankers import TopLists
from trainer.process import world


class ExposureCounter:
    """Counts of items, for every k and with and without the history: memory of 16 bytes per item and k, however many
    users there are. Counts are whole numbers, so their sum over workers depends neither on shares nor on batches.
    """

    def __init__(self, ks: Sequence[int], n_items: int, device: torch.device) -> None:
        """n_items: rows, padding included. device: where the workers of a run can add tensors up."""
        self._ks = ks
        self._counts = torch.zeros(2, len(ks), n_items, dtype=torch.int64, device=device)

    def add(self, lists: TopLists) -> None:
        """Count the lists of a batch of users, which are as long as the largest k."""
        for counts_KI, ids in zip(self._counts, lists, strict=True):
            for counts_I, k in zip(counts_KI, self._ks, strict=True):
                shown = ids[:, :k].reshape(-1).to(counts_I.device)
                counts_I.index_add_(0, shown, torch.ones_like(shown))

    def gather(self, users: int, trained: NDArray[np.int64]) -> tuple[list[Exposure], list[Exposure]]:
        """Exposures over all workers, one for each k: out of all items, and with the history masked. Collective.

        users: how many there are in all. trained: (I,) training interactions of each item row.
        """
        if world()[1] > 1:
            dist.all_reduce(self._counts)
        self._counts[:, :, 0] = 0  # lists that were too short
        everything, masked = (
            [Exposure(k, users, shown, trained) for k, shown in zip(self._ks, counts, strict=True)]
            for counts in self._counts.cpu().numpy()
        )
        return everything, masked
