"""Histories as the batches that a model encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from models.contract import Batch

#: histories in a batch
BATCH = 256
# The key of diffusion noise. It is constant, so that a history gets the same answer in every request and batch.
_NOISE_KEY = 0


def batches(histories: Sequence[Sequence[int]], length: int, device: torch.device) -> Iterator[Batch]:
    """Batches on `device` of the last `length` items of each history of item rows, oldest first, at least one."""
    for start in range(0, len(histories), BATCH):
        recent = [list(history[-length:]) for history in histories[start : start + BATCH]]
        padded = torch.tensor([row + [0] * (length - len(row)) for row in recent], dtype=torch.int64)
        zeros = torch.zeros(len(recent), dtype=torch.int64)
        batch = Batch(
            user=zeros - 1,
            history=padded,
            length=torch.tensor([len(row) for row in recent]),
            target=zeros,
            key=torch.full_like(zeros, _NOISE_KEY),
            behaviours=torch.zeros_like(padded, dtype=torch.uint8),
        )
        yield batch.to(device)
