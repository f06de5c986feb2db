"""The layout of a batch's tokens in memory: without padding on a CPU, with some of the padding on a GPU.

A history in training has about three items on average, so most of a padded (B, L) batch is padding. A CPU computes the
real tokens only, and attends within groups of rows of similar length. On a GPU the host would have to wait for the
device to know their number. There, as many tokens are kept as the host knows to be enough (`Batch.tokens`): the real
ones, and padding that fills it up. Attention runs over whole rows. Where the host knows nothing, all padding is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contract import Batch

#: lengths to which groups of shorter rows are padded; the group of all longer rows has the full length
_GROUP_LENGTHS = (2, 4)


@dataclass(frozen=True)
class Group:
    """G rows of similar length, padded to length M. Attention runs within a group, whose tokens are contiguous.

    tokens: slice of the kept tokens. row: (G,) batch rows. slot: (n,) places of the tokens in the flattened (G * M)
    padded group, None if the tokens fill it. mask_G1MM: whether a query position may attend to a key position.
    """

    tokens: slice
    row: Tensor
    length: int
    slot: Tensor | None
    mask_G1MM: Tensor

    def pad(self, x_nD: Tensor) -> Tensor:
        """(n, D) tokens of this group -> (G, M, D), with zeros at places without a token."""
        if self.slot is not None:
            x_nD = x_nD.new_zeros(len(self.row) * self.length, x_nD.shape[1]).index_copy(0, self.slot, x_nD)
        return x_nD.view(self.row.shape[0], self.length, -1)

    def flatten(self, x_GMD: Tensor) -> Tensor:
        """(G, M, D) -> (n, D), the inverse of `pad`."""
        flat = x_GMD.reshape(-1, x_GMD.shape[2])
        return flat if self.slot is None else flat.index_select(0, self.slot)


@dataclass(frozen=True)
class Layout:
    """The order of a batch's tokens. N: number of tokens that are kept. B, L: the padded shape.

    token: (N,) positions of the kept tokens in the flattened (B * L) batch, group by group; None if all are kept.
    last: (B,) index of each row's last real token among the kept tokens.
    """

    rows: int
    length: int
    token: Tensor | None
    last: Tensor
    groups: tuple[Group, ...]

    @staticmethod
    def of(batch: Batch, pack: bool | None = None) -> Layout:
        """The layout of `batch`. pack: whether to leave all padding out; None: only on a CPU (tests set it)."""
        if pack is None:
            pack = not (
                batch.history.is_cuda or torch.compiler.is_exporting()
            )  # a graph has no shapes that data decide
        if pack:
            return _packed(batch)
        return _filled(batch) if batch.tokens else _padded(batch)

    def flatten(self, x: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...): the kept tokens."""
        flat = x.reshape(self.rows * self.length, *x.shape[2:])
        return flat if self.token is None else flat.index_select(0, self.token)

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, L, ...): the inverse of `flatten`, with zeros for tokens that were not kept."""
        if self.token is not None:
            padded = x.new_zeros(self.rows * self.length, *x.shape[1:])
            x = padded.index_copy(0, self.token, x)
        return x.view(self.rows, self.length, *x.shape[1:])

    def sum(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (B, D): the sum over the kept tokens of each row, in an order that does not vary."""
        if self.token is None or x_ND.is_cuda:
            return self.pad(x_ND).sum(1)
        return x_ND.new_zeros(self.rows, x_ND.shape[1]).index_add(0, self.row(), x_ND)  # on a CPU, one after another

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


def _padded(batch: Batch) -> Layout:
    rows, length = batch.history.shape
    row = torch.arange(rows, device=batch.history.device)
    group = Group(slice(0, rows * length), row, length, None, _mask(batch.length, length))
    return Layout(rows, length, None, row * length + batch.length - 1, (group,))


def _filled(batch: Batch) -> Layout:
    """All real tokens in the order of rows, then padding, `batch.tokens` in all. If these were too few, `last` would
    lie outside, which the first read of it reports."""
    rows, length = batch.history.shape
    padding = torch.arange(length, device=batch.history.device) >= batch.length[:, None]
    token = padding.flatten().byte().argsort(stable=True)[: batch.tokens]
    row = torch.arange(rows, device=batch.history.device)
    group = Group(slice(0, len(token)), row, length, token, _mask(batch.length, length))
    return Layout(rows, length, token, batch.length.cumsum(0) - 1, (group,))


def _packed(batch: Batch) -> Layout:
    rows, length = batch.history.shape
    limits = [limit for limit in _GROUP_LENGTHS if limit < length] + [length]
    groups, tokens, start, shortest = [], [], 0, 0
    last = torch.empty_like(batch.length)
    for limit in limits:
        row = ((batch.length > shortest) & (batch.length <= limit)).nonzero().squeeze(1)
        shortest = limit
        if not len(row):
            continue
        lengths = batch.length[row]
        real = torch.arange(limit, device=row.device) < lengths[:, None]
        token = (row[:, None] * length + torch.arange(limit, device=row.device))[real]
        slot = real.flatten().nonzero().squeeze(1)
        groups.append(Group(slice(start, start + len(token)), row, limit, slot, _mask(lengths, limit)))
        last[row] = start + lengths.cumsum(0) - 1
        tokens.append(token)
        start += len(token)
    return Layout(rows, length, torch.cat(tokens), last, tuple(groups))


def _mask(length_G: Tensor, length: int) -> Tensor:
    """(G, 1, M, M) bool: the key is not later than the query, and it is not padding."""
    position = torch.arange(length, device=length_G.device)
    real_GM = position < length_G[:, None]
    return (real_GM[:, None, :] & (position <= position[:, None])[None])[:, None]


def kept_first(keep_BL: Tensor) -> Tensor:
    """(B, L) places of each row: first those to keep, then the others, both in their order."""
    place_L = torch.arange(keep_BL.shape[1], device=keep_BL.device)
    # no two keys are equal, so any sort keeps the order; ONNX has no stable one
    return (place_L + (~keep_BL).long() * keep_BL.shape[1]).argsort(dim=1)
