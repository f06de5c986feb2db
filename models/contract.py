"""The contract between models and everything else: the inputs of a model, and the methods that it must have.

Shape legend, used as a suffix of tensor names across `models/`:
B batch (rows), L history length, K steps of a content sequence (frames or segments), V width of one step,
H text width, D hidden width, I items (row 0 is padding), U users, S layer states of an encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from models.options.base import ContentField, Similarity
from models.row_share import RowShare


@dataclass(frozen=True)
class Batch:
    """The rows of one step, in fixed shapes; item row 0 is padding.

    user: (B,) int64, user rows; -1 for a user who is not in the training data and is known by the history alone.
    history: (B, L) int64, item rows, oldest first, padded with 0 on the right.
    length: (B,) int64, number of real items in `history`, at least 1. target: (B,) int64, the next item (0: unknown).
    key: (B,) int64, the key of keyed noise: distinct per (training row, epoch), or the user at evaluation.
    behaviours: (B, L) uint8, for each item of `history`: bit n is set if the user showed `ModelContext.behaviours[n]`;
    all zeros if the dataset has one behaviour only.
    tokens: at least the number of real items in all of `history`, known to the host (0: unknown). On a GPU, a `Layout`
    then has room for so many, and not for all padding.
    """

    user: Tensor
    history: Tensor
    length: Tensor
    target: Tensor
    key: Tensor
    behaviours: Tensor
    tokens: int = 0

    def __len__(self) -> int:
        return self.user.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields but `tokens`, in the order of the constructor."""
        return self.user, self.history, self.length, self.target, self.key, self.behaviours

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed, and as many `tokens`."""
        user, history, length, target, key, behaviours = map(change, self.tensors())
        return Batch(user, history, length, target, key, behaviours, self.tokens)

    def to(self, device: torch.device) -> Batch:
        """The same rows on `device` (the copy is asynchronous if the memory is pinned)."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return replace(self.each(lambda x: x[rows]), tokens=0)


class Moments(NamedTuple):
    """Mean and standard deviation (1 where it is 0) of a content field: (V,) or (H,) float32, over all its vectors."""

    mean: Tensor
    deviation: Tensor


class ItemTable(Protocol):
    """The content of all items by item row. It may be on the device, in host memory, or memory-mapped on disk.

    Fields: "sequence" (K, V), frames of the video or segments of the title; "visual" (V,), one vector for the
    whole video (or the mean of the segments); "text" (H,), one vector for the title; "visual_layers" (S, V) and
    "text_layers" (S, H), the state after each layer of the encoder, the embedding layer first (S differs by encoder).
    Values are those of the encoder, unscaled (`models.nn.content` scales them); an item without content has zeros and
    `present` False. Row 0 is padding: zeros, not present.
    """

    @property
    def n_items(self) -> int:
        """Rows of every field, padding row 0 included (I)."""

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one item's entry per field that the dataset has, e.g. {"sequence": (5, 768), "text": (384,)}."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """A word for messages that says what each field contains, e.g. {"sequence": "segments"} or "frames"."""

    def moments(self, field: ContentField) -> Moments:
        """Mean and standard deviation of the field over the items of the training rows."""

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape, *widths[field]) float32 on the device of `rows`."""

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """(*rows.shape,) bool on the device of `rows`: whether the item has this content."""


@dataclass(frozen=True)
class TrainingInteractions:
    """The training interactions (no validation or test item), as compressed rows: user u has
    `items[offsets[u]:offsets[u + 1]]`, oldest first. offsets: (U + 1,) int64; items: (N,) int64 item rows.
    """

    offsets: Tensor
    items: Tensor


@dataclass(frozen=True)
class ModelContext:
    """The data and settings that a model is built from, besides its own options."""

    table: ItemTable
    interactions: TrainingInteractions
    max_length: int
    seed: int
    #: names of the bits of `Batch.behaviours`; empty if the dataset has one behaviour only
    behaviours: tuple[str, ...] = ()
    #: titles of item rows 1..I-1 (None: unknown); given only to systems whose options say `needs_titles`
    titles: Sequence[str | None] = ()
    #: the rows of item tables that this worker is to hold; None: all of them
    share: RowShare | None = None


@dataclass(frozen=True)
class Clock:
    """The progress of training, for schedules in a model. epoch: from 1. step: updates since the start of training."""

    epoch: int = 1
    step: int = 0


class System:
    """The properties of a built system. Properties that are known before it is built are in its options class."""

    #: messages for the user about this system on this data, printed when a run starts
    notes: tuple[str, ...] = ()
    #: the ways in which this system can encode users at evaluation (e.g. chain or direct); the trainer validates all
    inference_choices: tuple[str, ...] = ("default",)
    inference: str = "default"
    #: the rows of its item tables that this worker holds, where they are divided among workers; None: all of them
    share: RowShare | None = None

    def doubts(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """What the user should know at the end of a run; figures: means of the last epoch's terms without a weight."""
        del figures
        return ()


class Baseline(System, ABC):
    """A recommender without parameters, which its constructor fits. A trained system should rank better than this."""

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """(B, I) float32 scores on the device of `batch`, higher is better; column 0 is padding and never ranked."""


class SequenceModel(System, nn.Module, ABC):
    """A recommender that turns histories into user vectors, and ranks items by `similarity` to the user vector.

    `forward` is the training pass, so that an engine with hooks on it (DeepSpeed) sees every use of a parameter.
    Everything learned must be a parameter, because checkpoints contain no buffers.
    """

    similarity: Similarity = "dot"
    #: weight of each named term of `forward` in the total loss
    loss_weights: Mapping[str, float]
    #: ends of the names of parameters that have a row for each item (row 0 is padding), or a row for each user
    item_rows: tuple[str, ...] = ("item_embedding.weight", "candidates.own")
    user_rows: tuple[str, ...] = ("user_embedding.weight",)
    #: set by the training loop before every step
    clock: Clock = Clock()

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, each a scalar: the mean over the rows of `batch`.

        A term without a weight in `loss_weights` is a figure: it is logged like the others, and not minimised. It has
        the name of a part of the system and its own, such as "tcd/explained".
        """

    def sparse_tables(self) -> list[Tensor]:
        """Make the gradients of the tables of which a step reads few rows sparse, and return these tables.

        Their cost, and that of their updates, then does not grow with the table. [] if the system has no such tables.
        """
        return []

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, D) float32 user vectors for the histories; `batch.target` is not read. Deterministic in eval mode."""

    def frame_changes(self, batch: Batch) -> Tensor | None:
        """(B, K) by how much the system's denoiser changes each frame of the last video, as a share of the frame.

        A frame that is changed little is kept. None for a system that denoises no frames.
        """
        del batch
        return None

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """(I, D) float32 item vectors; row 0 is padding and is never ranked. With `share`, those of its rows alone."""
