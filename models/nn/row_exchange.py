"""Rows of a table that is divided among workers: asked of the workers that hold them, and gradients sent back.

Each worker asks for each row that it reads once. The worker that holds a row gets its gradient from all that have
asked, as a sparse gradient, and alone updates it. So a step sends 8 bytes for the number of each row, and 4 bytes x
width for its values and again for its gradient, whatever the size of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from models.row_share import RowShare


@dataclass(frozen=True)
class _Routes:
    """How many rows this worker asks of each worker, and how many each asks of it."""

    asked: list[int]
    given: list[int]

    def ask(self, x: Tensor) -> Tensor:
        """(sum of asked, ...), ordered by the worker that holds the row -> (sum of given, ...), by who asks."""
        return _sent(x, self.asked, self.given)

    def answer(self, x: Tensor) -> Tensor:
        """(sum of given, ...) -> (sum of asked, ...): the way back."""
        return _sent(x, self.given, self.asked)


def _sent(x: Tensor, there: list[int], here: list[int]) -> Tensor:
    received = x.new_empty(sum(here), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), here, there)
    return received


class _Exchange(torch.autograd.Function):
    """(n,) distinct item rows -> (n, D) their vectors. The gradient of the share is sparse, of the rows that were
    asked of it, one entry for each time; padding gets none."""

    @staticmethod
    def forward(ctx: Any, share_RD: Tensor, row_n: Tensor, share: RowShare) -> Tensor:
        owner_n = share.owner(row_n)
        ctx.order = owner_n.argsort(stable=True)
        asked = torch.bincount(owner_n, minlength=share.size)
        ctx.routes = _Routes(asked.tolist(), _sent(asked, [1] * share.size, [1] * share.size).tolist())
        ctx.local = ctx.routes.ask(share.local(row_n)[ctx.order])
        ctx.shape = share_RD.shape
        answer_nD = ctx.routes.answer(share_RD.index_select(0, ctx.local))
        return torch.empty_like(answer_nD).index_copy_(0, ctx.order, answer_nD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        values = ctx.routes.ask(grad_outputs[0].index_select(0, ctx.order))
        values = values.masked_fill(ctx.local[:, None] == 0, 0.0)
        gradient = torch.sparse_coo_tensor(ctx.local[None], values, ctx.shape, check_invariants=False)
        return gradient, None, None


def rows_of(table: Tensor, rows: Tensor, share: RowShare) -> Tensor:
    """(..., D) the vectors of item `rows` (int64, any shape). table: (share.count, D), this worker's share.

    Collective, in backward too: every worker must call it, also without a row, and then call backward.
    """
    distinct_n, place = torch.unique(rows, return_inverse=True)
    vector_nD: Tensor = _Exchange.apply(table, distinct_n, share)  # type: ignore[no-untyped-call]
    return F.embedding(place, vector_nD)


class SharedEmbedding(nn.Module):
    """`nn.Embedding(items, width, padding_idx=0)`, of which this worker holds a share. Calls are collective."""

    def __init__(self, share: RowShare, width: int) -> None:
        super().__init__()
        self.share, self.num_embeddings, self.width = share, share.items, width
        # drawn as nn.Embedding draws, so that what is drawn later is the same, too
        self.weight = nn.Parameter(share.normal(width, 1.0))

    def draw(self, deviation: float) -> None:
        """Draw all rows anew, padding too, as `nn.init.normal_` draws those of the whole table."""
        with torch.no_grad():
            self.weight.copy_(self.share.normal(self.width, deviation))

    def forward(self, rows: Tensor) -> Tensor:
        """(...,) item rows -> (..., D)."""
        return rows_of(self.weight, rows, self.share)


def item_embedding(items: int, width: int, share: RowShare | None) -> nn.Embedding | SharedEmbedding:
    """A table of `items` vectors with padding row 0: whole, or this worker's share of it."""
    return nn.Embedding(items, width, padding_idx=0) if share is None else SharedEmbedding(share, width)
