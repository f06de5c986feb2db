"""What the bench needs of a peer: its released code, made to train on our rows and to score our catalogue."""

from __future__ import annotations

import random
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from reference_rows import Sequences
from torch import Tensor, nn

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """One training. data: the prepared dataset. code: the peer's checkout. scratch: a folder for files it reads.

    options: what the user set, by the peer's own names. device: cpu or cuda.
    """

    data: Path
    sequences: Sequences
    code: Path
    scratch: Path
    options: Mapping[str, Any]
    seed: int
    device: torch.device

    def content(self, field: str) -> np.ndarray:
        """(I + 1, ...) float32 raw content of the items, row 0 padding. Ends the program where there is none."""
        path = self.data / "table" / f"{field}.npy"
        if not path.exists():
            sys.exit(f"{self.data} has no content {field!r}, which this peer needs; prepare it with this content")
        return np.load(path, allow_pickle=False).astype(np.float32)  # type: ignore[no-any-return]

    def training_items(self) -> list[np.ndarray]:
        """For each user, the items at training positions, oldest first."""
        return [self.sequences.items[start : end - 2] for start, end in pairwise(self.sequences.offsets.tolist())]

    def open_code(self, folder: str = "") -> None:
        """Let modules of the checkout, or of a folder in it, be imported by their own names."""
        sys.path.insert(0, str(self.code / folder))

    def settings(self, published: Mapping[str, Any], length: str) -> dict[str, Any]:
        """The published settings with the dataset's history length, which the peer calls `length`, and the options."""
        return {**published, length: self.sequences.max_length, **self.options}

    def seed_generators(self) -> None:
        """Seed the three generators that released code draws from."""
        for seed in (random.seed, torch.manual_seed, np.random.seed):
            seed(self.seed)


class Peer(ABC):
    """A model of released code in training. The released optimizer, losses and batches are used as they are.

    patience: validations in a row without `better` after which training ends. every: epochs from one validation to
    the next. epochs: the most epochs, as released. cutoffs: lengths of list of the metrics that `better` is given.
    """

    repository: ClassVar[str]
    commit: ClassVar[str]
    patience: int
    every: int = 1
    epochs: int
    cutoffs: tuple[int, ...] = (5, 10, 20)
    #: what the model was built with, for the report
    settings: dict[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any = None

    @abstractmethod
    def train_epoch(self, epoch: int) -> float:
        """Train one epoch, counted from 0; return the mean loss."""

    @abstractmethod
    def scores(self, split: str) -> Iterator[Tensor]:
        """(B, I + 1) scores of the users in order, "valid" or "test": column r is our item row r, padding is -inf."""

    @abstractmethod
    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        """The peer's own rule of early stopping and of the epoch to keep. now, best: "unmasked" and "masked" metrics.

        best: the metrics for which this was last true.
        """

    def remember(self) -> Any:
        """What a resumed training needs besides model, optimizer, scheduler and random numbers."""
        return None

    def recall(self, memory: Any) -> None:
        """Take back what `remember` gave."""
        assert memory is None


def require_commit(peer: type[Peer], code: Path) -> None:
    """End the program unless `code` is a checkout of the commit that the bench was written for."""
    said = subprocess.run(["git", "-C", str(code), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found = said.stdout.strip() or "no checkout"
    if found != peer.commit:
        sys.exit(
            f"{code} is {found}, and this bench was written for {peer.commit} of {peer.repository}:\n"
            f"  git clone https://github.com/{peer.repository} {code} && git -C {code} checkout {peer.commit}"
        )
