"""The contract between models and everything else: what a model is given, and what it must give.

Shape legend, used as a suffix of tensor names across `models/`:
B batch (rows), L history length, K steps of a content sequence (frames or segments), V width of one step,
H text width, D hidden width, I items (row 0 is padding), U users, S layer states of an encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from models.options.base import ContentField, Similarity


@dataclass(frozen=True)
class Batch:
    """The rows of one step, in fixed shapes; item row 0 is padding.

    user: (B,) int64, user rows; -1 is somebody who was not there at training, known by the history alone.
    history: (B, L) int64, item rows, oldest first, padded with 0 on the right.
    length: (B,) int64, number of real items in `history`, at least 1. target: (B,) int64, the next item (0: unknown).
    key: (B,) int64, what diffusion noise is keyed by: distinct per (training row, epoch), or the user at evaluation.
    behaviours: (B, L) uint8 along `history`: bit n is set where the user showed `ModelContext.behaviours[n]`; zeros
    where the dataset has one behaviour only.
    """

    user: Tensor
    history: Tensor
    length: Tensor
    target: Tensor
    key: Tensor
    behaviours: Tensor

    def __len__(self) -> int:
        return self.user.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same rows on `device` (asynchronous where memory is pinned)."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return Batch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class ItemTable(Protocol):
    """Item content by item row, wherever it is stored: on the device, in host memory, or memory-mapped on disk.

    Fields: "sequence" (K, V), frames of the video or segments of the title; "visual" (V,), one vector for the
    whole video (or the mean of the segments); "text" (H,), one vector for the title; "visual_layers" (S, V) and
    "text_layers" (S, H), the state after each layer of the encoder, the embedding layer first (S differs by encoder).
    Values are standardised; an item without content has zeros and `present` False. Row 0 is
    padding: zeros, not present.
    """

    @property
    def n_items(self) -> int:
        """Rows of every field, padding row 0 included (I)."""

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one item's entry per field that the dataset has, e.g. {"sequence": (5, 768), "text": (384,)}."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """What each field holds, in words for messages: e.g. {"sequence": "segments"} or {"sequence": "frames"}."""

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape, *widths[field]) float32 on the device of `rows`."""

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape,) bool on the device of `rows`: whether the item has this content."""


@dataclass(frozen=True)
class TrainingInteractions:
    """Training interactions only (no validation or test item), as compressed rows: user u has
    `items[offsets[u]:offsets[u + 1]]`, oldest first. offsets: (U + 1,) int64; items: (N,) int64 item rows.
    """

    offsets: Tensor
    items: Tensor


@dataclass(frozen=True)
class ModelContext:
    """What a model is built from besides its own options."""

    table: ItemTable
    interactions: TrainingInteractions
    max_length: int
    seed: int
    #: names of the bits of `Batch.behaviours`; none where the dataset has one behaviour only
    behaviours: tuple[str, ...] = ()
    #: titles of item rows 1..I-1 (None: unknown); given only to systems whose options say `needs_titles`
    titles: Sequence[str | None] = ()


@dataclass(frozen=True)
class Clock:
    """How far training is: `epoch` from 1, `step` updates done since its start. For schedules inside of a model."""

    epoch: int = 1
    step: int = 0


class System:
    """What a built system says of itself; what is known before it is built, its options say (models/options)."""

    #: what a user should know about this system on this data, said when a run starts
    notes: tuple[str, ...] = ()
    #: ways this system can encode users at evaluation (e.g. reverse chain or direct call); the trainer validates all
    inference_choices: tuple[str, ...] = ("default",)
    inference: str = "default"


class Baseline(System, ABC):
    """A recommender without parameters, fitted by its constructor: what a trained system has to beat."""

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """(B, I) float32 scores on the device of `batch`, higher is better; column 0 is padding and never ranked."""


class SequenceModel(System, nn.Module, ABC):
    """A recommender: histories in, user vectors out, ranked against item vectors by `similarity`.

    `forward` is the training pass, so that engines which hook it (DeepSpeed) see every use of a parameter.
    Everything learned is a parameter: checkpoints hold no buffers.
    """

    similarity: Similarity = "dot"
    #: weight of each named term of `forward` in the total loss
    loss_weights: Mapping[str, float]
    #: set by the training loop before every step
    clock: Clock = Clock()

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, each a scalar: the mean over the rows of `batch`."""

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, D) float32 user vectors for the histories; `batch.target` is not read. Deterministic in eval mode."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """(I, D) float32 item vectors; row 0 is padding and is never ranked."""
