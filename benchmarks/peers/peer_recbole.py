"""The peers that RecBole or a fork of it trains: their epochs, their ranking and RecBole's early stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from peer import Metrics, Peer
from torch import Tensor


class RecBolePeer(Peer):
    """Trained by RecBole's trainer, epoch by epoch. A subclass makes `model`, and then calls `hold`."""

    patience = 11  # RecBole stops when its counter exceeds 10
    model: Any

    def hold(self, trainer: Any, loaders: Mapping[str, Any], to_row: np.ndarray) -> None:
        """Keep RecBole's trainer and its loaders by split. to_row: (I + 1,) our item row of each of its item ids."""
        self._trainer, self._loaders = trainer, loaders
        self._to_id = torch.from_numpy(np.argsort(to_row))
        self.optimizer = trainer.optimizer

    def train_epoch(self, epoch: int) -> float:
        total = self._trainer._train_epoch(self._loaders["train"], epoch)
        if isinstance(total, tuple):  # RecBole-DA counts its batches beside the loss
            total = total[0]
        return float(total) / len(self._loaders["train"])

    def scores(self, split: str) -> Iterator[Tensor]:
        for interaction, *_ in self._loaders[split]:
            found = self.model.full_sort_predict(interaction.to(self.model.device))
            found[:, 0] = -torch.inf
            yield found[:, self._to_id.to(found.device)]

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Its NDCG@10 of 4 decimals is not lower, as RecBole counts."""
        value = round(now["unmasked"]["NDCG@10"], 4)
        return best is None or value >= round(best["unmasked"]["NDCG@10"], 4)
