"""Sub-sequences of histories by behaviour, which M3BSR encodes separately."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.contract import Batch
from models.nn.layout import Layout, kept_first
from models.nn.noise import KeyedNoise, Stream


def compact(batch: Batch, keep_BL: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """The kept items of every row moved to the left, in order.

    Returns the batch of kept items (a row without any has length 1 and only padding), the (B, L) position that each
    item was moved from, and the (B,) number of items that each row keeps.
    """
    count_B = keep_BL.sum(dim=1)
    source_BL = kept_first(keep_BL)
    filled = torch.arange(keep_BL.shape[1], device=count_B.device) < count_B[:, None]
    history, behaviours = (x.gather(1, source_BL) * filled for x in (batch.history, batch.behaviours))
    kept = replace(batch, history=history, behaviours=behaviours, length=count_B.clamp(min=1))
    return kept, source_BL, count_B


@dataclass(frozen=True)
class Part:
    """Tokens of a sub-sequence of every history; an empty sub-sequence has one null token, so that it can be encoded.

    length: (B,) tokens of a row, at least 1. key: (B,), see Batch. source: (n,) index of each token among the history's
    tokens. real: (n,) bool, False for null tokens and padding. weight: (n,) float32, with which a sum over tokens is
    the mean over rows of the mean over a row's tokens (an empty row counts as 0).
    """

    layout: Layout
    length: Tensor
    key: Tensor
    source: Tensor
    real: Tensor
    weight: Tensor

    @staticmethod
    def of(batch: Batch, keep_BL: Tensor, history: Layout) -> Part:
        """The part of `batch` that `keep_BL` (B, L) selects. history: the layout of the tokens of `batch`."""
        kept, source_BL, count_B = compact(batch, keep_BL)
        layout = Layout.of(kept)
        size = history.rows * history.length if history.token is None else len(history.token)
        token_BL = history.pad(torch.arange(size, device=keep_BL.device))
        row = layout.row()
        real = layout.position() < count_B[row]
        weight = real / (kept.length[row] * batch.user.shape[0])
        return Part(layout, kept.length, batch.key, layout.flatten(token_BL.gather(1, source_BL)), real, weight)

    def take(self, x_ND: Tensor, null_D: Tensor | None) -> Tensor:
        """(N, D) tokens of the history -> (n, D) tokens of this part. null_D: (D,) value of the tokens that are not
        real; None leaves them undefined."""
        taken = x_ND.index_select(0, self.source)
        return taken if null_D is None else torch.where(self.real[:, None], taken, null_D)

    def put(self, x_nD: Tensor, into_ND: Tensor) -> Tensor:
        """Add the (n, D) tokens of this part to their places in the (N, D) tokens of the history."""
        return into_ND.index_add(0, self.source, (x_nD * self.real[:, None]).to(into_ND.dtype))

    def normal(self, width: int, noise: KeyedNoise, stream: Stream) -> Tensor:
        """(n, width) standard normal noise, keyed by row and position."""
        key_n = self.key[self.layout.row()] * self.layout.length + self.layout.position()
        return noise.normal(key_n, (width,), stream)
