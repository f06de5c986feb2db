"""Sparse matrices in models. They are built from training interactions alone, and are never made dense.

While a matrix is built, it is a coalesced torch COO tensor. A model multiplies with it as a `SparseMap`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import TrainingInteractions
from models.nn.precision import at_least_float32


class _Product(torch.autograd.Function):
    """A @ x for a constant sparse A. The gradient is A.T @ gradient, with a transpose that is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return _times(matrix, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _times(ctx.transposed, grad_outputs[0].contiguous()), None, None


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    # on a GPU, cuSPARSE adds in an order that varies
    return matrix @ x if x.device.type == "cpu" else _rows_added(matrix, x)


def _rows_added(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (m, n) in CSR form @ x (n, D), by a kernel that adds the entries of a row one after another."""
    return F.embedding_bag(
        matrix.col_indices(), x.contiguous(), matrix.crow_indices(), mode="sum", per_sample_weights=matrix.values(),
        include_last_offset=True,
    )  # fmt: skip


class SparseMap(nn.Module):
    """A constant (m, n) sparse matrix as a map (n, D) -> (m, D), in float32 (float64 for gradient checks).

    It stores the entries of the matrix twice, and nothing of size m x n. It is not in checkpoints, because it is built
    from the data.
    """

    matrix: Tensor
    transposed: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", _rows(matrix), persistent=False)
        self.register_buffer("transposed", _rows(matrix.t()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) -> (m, D)."""
        x = at_least_float32(x)
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = _Product.apply(x, self.matrix.to(x.dtype), self.transposed.to(x.dtype))  # type: ignore[no-untyped-call]
        return product


def sparse_matrix(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The coalesced (COO) matrix with `values` (n,) at `rows`, `columns` (n,) int64; values at one place are summed."""
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=True).coalesce()


def user_item_counts(interactions: TrainingInteractions, n_items: int) -> Tensor:
    """(U, I) sparse float32: how often each user interacted with each item in training."""
    users = interaction_users(interactions)
    shape = (len(interactions.offsets) - 1, n_items)
    return sparse_matrix(users, interactions.items, torch.ones(len(users)), shape)


def interaction_users(interactions: TrainingInteractions) -> Tensor:
    """(N,) int64 user row of each training interaction."""
    return torch.repeat_interleave(torch.arange(len(interactions.offsets) - 1), interactions.offsets.diff())


def row_normalised(matrix: Tensor) -> Tensor:
    """Every row of a sparse matrix divided by its sum; empty rows stay empty."""
    matrix = matrix.coalesce()
    row = matrix.indices()[0]
    total = matrix.values().new_zeros(matrix.shape[0]).index_add_(0, row, matrix.values())
    return torch.sparse_coo_tensor(
        matrix.indices(), matrix.values() / total[row], matrix.shape, is_coalesced=True, check_invariants=True
    )


def _rows(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch warns that CSR is in beta state; our tests check the products
        warnings.simplefilter("ignore", UserWarning)
        return matrix.coalesce().to_sparse_csr()
