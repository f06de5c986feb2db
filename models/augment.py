"""Augmented views of histories (CL4SRec): crop, mask and reorder all rows of a batch together, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contract import Batch
from models.nn.noise import KeyedNoise, Stream

#: the item row of [MASK] in a view
MASK = -1
#: a history and its lengths, as in `Batch`
View = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Augment:
    """Makes two views of each row, by two different operators out of three; a history of one item is unchanged.

    crop: share of the history that is kept, as one run with a uniform start. mask: share of the items that [MASK]
    replaces. reorder: share of the history that is shuffled, as one run. Numbers of items are rounded down.
    """

    crop: float
    mask: float
    reorder: float
    noise: KeyedNoise

    def __call__(self, batch: Batch) -> tuple[View, View]:
        """Both views of `batch`, drawn by its keys. Their order does not matter, because the loss is symmetric."""
        history_BL, length_B = batch.history, batch.length
        # only the order of the draws is used, so any continuous distribution gives the same result
        crop, masks, run, order = self.noise.normal(batch.key, (4, history_BL.shape[1]), Stream.AUGMENTATION).unbind(1)
        views = [
            cropped(history_BL, length_B, self.crop, crop),
            masked(history_BL, length_B, self.mask, masks),
            reordered(history_BL, length_B, self.reorder, run, order),
        ]
        history_3BL, length_3B = (torch.stack(parts) for parts in zip(*views, strict=True))
        left_out_B = self.noise.integers(batch.key, 0, 2, Stream.AUGMENTATION)
        row_B = torch.arange(len(batch), device=length_B.device)
        one_B, two_B = (left_out_B + 1) % 3, (left_out_B + 2) % 3
        return (history_3BL[one_B, row_B], length_3B[one_B, row_B]), (
            history_3BL[two_B, row_B], length_3B[two_B, row_B]
        )  # fmt: skip


def cropped(history_BL: Tensor, length_B: Tensor, share: float, draw_BL: Tensor) -> View:
    """A run of floor(share * length) items, at least one, moved to the left."""
    kept_B = _count(length_B, share).clamp(min=1)
    position = torch.arange(history_BL.shape[1], device=length_B.device)
    source_BL = _start(length_B - kept_B, draw_BL)[:, None] + position
    moved_BL = history_BL.gather(1, source_BL.clamp(max=history_BL.shape[1] - 1))
    return moved_BL * (position < kept_B[:, None]), kept_B


def masked(history_BL: Tensor, length_B: Tensor, share: float, draw_BL: Tensor) -> View:
    """floor(share * length) items at random places become [MASK]; a history of one item is unchanged."""
    padding_BL = torch.arange(history_BL.shape[1], device=length_B.device) >= length_B[:, None]
    place_BL = draw_BL.masked_fill(padding_BL, torch.inf).argsort(1).argsort(1)
    count_B = _count(length_B, share) * (length_B > 1)
    return history_BL.masked_fill(place_BL < count_B[:, None], MASK), length_B


def reordered(history_BL: Tensor, length_B: Tensor, share: float, start_BL: Tensor, order_BL: Tensor) -> View:
    """A run of floor(share * length) items is shuffled."""
    count_B = _count(length_B, share)
    start_B1 = _start(length_B - count_B, start_BL)[:, None]
    position = torch.arange(history_BL.shape[1], device=length_B.device)
    before_BL, after_BL = position < start_B1, position >= start_B1 + count_B[:, None]
    # stable: the items before and after the run keep their order
    rank_BL = order_BL.masked_fill(before_BL, -torch.inf).masked_fill(after_BL, torch.inf).argsort(dim=1, stable=True)
    return history_BL.gather(1, rank_BL), length_B


def _count(length_B: Tensor, share: float) -> Tensor:
    """(B,) floor(share * length). The small number corrects rounding errors, such as .29 * 100 = 28.999..."""
    return (length_B.double() * share + 1e-9).floor().long()


def _start(last_B: Tensor, draw_BL: Tensor) -> Tensor:
    """(B,) uniform on {0, ..., last}: the position of the smallest of the first last + 1 draws."""
    position = torch.arange(draw_BL.shape[1], device=draw_BL.device)
    return draw_BL.masked_fill(position > last_B[:, None], torch.inf).argmin(1)
