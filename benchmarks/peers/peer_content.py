"""The peers that learn from content alone, by a loss within the batch (MoRec, IISAN): their rows and their ranking."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from peer import Job, Metrics, Peer
from torch import Tensor


class ContentPeer(Peer):
    """A row is a user, whose last L + 1 training items are trained at every position. Users with one item have none.

    A subclass calls `prepare`, makes its model, and then sets `optimizer`. share: (I + 1,) share of each item in the
    training rows, as released: that of padding is 1.
    """

    patience = 11  # both stop when their counter exceeds 10
    model: Any
    share: np.ndarray

    def prepare(self, job: Job, published: Mapping[str, Any]) -> argparse.Namespace:
        """Seed the generators, make the rows and return the settings, as released code takes them."""
        self.settings = job.settings(published, "max_seq_len")
        job.seed_generators()
        length = job.sequences.max_length
        self._job, self._batch = job, self.settings["batch_size"]
        self._rows = [each[-(length + 1) :] for each in job.training_items() if len(each) > 1]
        counts = np.bincount(np.concatenate(self._rows), minlength=job.sequences.manifest["items"] + 1)[1:]
        self.share = np.append([1], counts / counts.sum())
        return argparse.Namespace(**self.settings)

    @abstractmethod
    def loss(self, history: Tensor, mask: Tensor) -> Tensor:
        """Of (B, L + 1) items, padded on the left, and the (B, L) mask of those with a target."""

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """(n,) item rows -> (n, width) vectors."""

    def train_epoch(self, epoch: int) -> float:  # noqa: ARG002
        total, batches = 0.0, torch.randperm(len(self._rows)).split(self._batch)
        for chosen in batches:
            rows = [self._rows[row] for row in chosen.tolist()]
            history = left_padded(rows, self._job.sequences.max_length + 1).to(self._job.device)
            self.optimizer.zero_grad()
            loss = self.loss(history, (history[:, :-1] > 0).float())
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / len(batches)

    def scores(self, split: str) -> Iterator[Tensor]:
        sequences, device = self._job.sequences, self._job.device
        vectors = torch.cat(
            [self.encode(rows) for rows in torch.arange(sequences.manifest["items"] + 1, device=device).split(1024)]
        )
        rows = [sequences.history(user, position) for user, position in sequences.positions(split)]
        for first in range(0, len(rows), 1024):
            history = left_padded(rows[first : first + 1024], sequences.max_length).to(device)
            user = self.model.user_encoder(vectors[history], (history > 0).float(), device)[:, -1]
            found = user @ vectors.T
            found[:, 0] = -torch.inf
            yield found

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """Hit@10 with the history masked."""
        return best is None or now["masked"]["HR@10"] > best["masked"]["HR@10"]


def left_padded(rows: list[np.ndarray], length: int) -> Tensor:
    """(B, length) int64: histories that end with their newest item."""
    history = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, items in zip(history, rows, strict=True):
        row[length - len(items) :] = torch.from_numpy(items.astype(np.int64))
    return history
