"""How the tokens of a batch lie in memory: without their padding on a CPU, with it on a GPU.

A prefix has about three items on average, so most of a padded (B, L) batch is padding. A CPU computes the real
tokens only. A GPU keeps the padding: the number of real tokens is not known to the host without waiting for the
device, and the launches cost more than the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contract import Batch


@dataclass(frozen=True)
class Layout:
    """Token order of one batch. N is the number of tokens kept; B and L are the padded shape."""

    rows: int
    length: int
    token: Tensor | None
    """(N,) positions of the kept tokens in the flattened (B * L) batch; None: all of them."""
    last: Tensor
    """(B,) index, among the kept tokens, of each row's last real token."""
    mask_B1LL: Tensor
    """(B, 1, L, L) bool: query position may attend to key position (causal, key not padding)."""

    @staticmethod
    def of(batch: Batch, pack: bool | None = None) -> Layout:
        """The layout of `batch`; `pack` overrides the choice by device (tests)."""
        rows, length = batch.history.shape
        position = torch.arange(length, device=batch.history.device)
        real_BL = position < batch.length[:, None]
        mask_B1LL = (real_BL[:, None, :] & (position <= position[:, None])[None])[:, None]
        if pack is None:
            pack = not batch.history.is_cuda
        if pack:
            token = real_BL.flatten().nonzero().squeeze(1)
            return Layout(rows, length, token, batch.length.cumsum(0) - 1, mask_B1LL)
        last = torch.arange(rows, device=position.device) * length + batch.length - 1
        return Layout(rows, length, None, last, mask_B1LL)

    def flatten(self, x: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the kept tokens."""
        flat = x.reshape(self.rows * self.length, *x.shape[2:])
        return flat if self.token is None else flat.index_select(0, self.token)

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, L, ...): the inverse of `flatten`, with zeros where no token was kept."""
        if self.token is not None:
            padded = x.new_zeros(self.rows * self.length, *x.shape[1:])
            x = padded.index_copy(0, self.token, x)
        return x.view(self.rows, self.length, *x.shape[1:])

    def position(self) -> Tensor:
        """(N,) position of each kept token in its row, 0 for the oldest item."""
        if self.token is not None:
            return self.token % self.length
        return torch.arange(self.length, device=self.last.device).repeat(self.rows)

    def row(self) -> Tensor:
        """(N,) batch row of each kept token."""
        if self.token is not None:
            return self.token // self.length
        return torch.arange(self.rows, device=self.last.device).repeat_interleave(self.length)
