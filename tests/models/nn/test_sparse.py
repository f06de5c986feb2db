"""Sparse matrices of interactions: against dense ones in float64, with gradients, and without storing dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contract import TrainingInteractions
from models.nn.sparse import SparseMap, interaction_users, row_normalised, sparse_matrix, user_item_counts
from tests.helpers.model_fixtures import HISTORIES, ITEMS, assert_same, interactions


def some_matrix() -> Tensor:
    """(3, 4) with an empty row, an empty column and a place given twice."""
    rows, columns = torch.tensor([0, 2, 0, 2]), torch.tensor([3, 0, 3, 1])
    return sparse_matrix(rows, columns, torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64), (3, 4))


def test_values_of_one_place_are_added() -> None:
    assert some_matrix().to_dense().tolist() == [[0, 0, 0, 1.5], [0, 0, 0, 0], [-2, 4, 0, 0]]


def test_places_outside_of_the_matrix_are_refused() -> None:
    with pytest.raises(RuntimeError):
        sparse_matrix(torch.tensor([3]), torch.tensor([0]), torch.ones(1), (3, 4))


def test_a_map_is_the_product_with_its_gradient() -> None:
    matrix = some_matrix()
    sparse = SparseMap(matrix)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert_same(sparse(x), matrix.to_dense() @ x, [x])
    assert torch.autograd.gradcheck(sparse, x)


def test_a_map_through_two_layers() -> None:
    """The gradient may arrive as a view that is not contiguous."""
    one, two = SparseMap(some_matrix()), SparseMap(some_matrix().t())
    dense = some_matrix().to_dense()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert_same(two(one(x.T).tanh()).T, (dense.T @ (dense @ x.T).tanh()).T, [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_computes_in_float32_at_least(dtype: torch.dtype) -> None:
    sparse, x = SparseMap(some_matrix().float()), torch.randn(4, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        product = sparse(x)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, some_matrix().float().to_dense() @ x.float())


def test_gradients_come_back_in_the_type_of_the_input() -> None:
    x = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(SparseMap(some_matrix().float())(x).sum(), x)
    assert gradient.dtype == torch.bfloat16


def test_a_map_has_no_parameters_and_leaves_no_trace_in_a_checkpoint() -> None:
    sparse = SparseMap(some_matrix())
    assert not list(sparse.parameters())
    assert not sparse.state_dict()


def test_a_map_holds_its_entries_and_nothing_of_the_size_of_the_matrix() -> None:
    n = 1_000_000  # dense: 4 TB
    place = torch.tensor([5, 999_999])
    sparse = SparseMap(sparse_matrix(place, place.flip(0), torch.ones(2), (n, n)))
    out = sparse(torch.arange(n, dtype=torch.float32)[:, None])
    assert out[:, 0].nonzero().squeeze(1).tolist() == [5, 999_999]
    assert out[place, 0].tolist() == [999_999, 5]


def test_counts_are_those_of_loops() -> None:
    expected = torch.zeros(len(HISTORIES), ITEMS)
    for user, history in enumerate(HISTORIES):
        for item in history:
            expected[user, item] += 1
    counts = user_item_counts(interactions(), ITEMS)
    assert counts.is_coalesced()
    assert torch.equal(counts.to_dense(), expected)
    owners = [user for user, history in enumerate(HISTORIES) for _ in history]
    assert interaction_users(interactions()).tolist() == owners


def test_users_without_interactions_have_empty_rows() -> None:
    training = TrainingInteractions(torch.tensor([0, 0, 2, 2]), torch.tensor([4, 1]))
    counts = user_item_counts(training, 5).to_dense()
    assert counts.tolist() == [[0, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert interaction_users(training).tolist() == [1, 1]


@pytest.mark.parametrize("coalesced", [True, False])
def test_rows_are_divided_by_their_sums(coalesced: bool) -> None:
    index, value = torch.tensor([[0, 0, 2, 0], [3, 1, 0, 3]]), torch.tensor([1.0, 1.0, 5.0, 2.0])
    matrix = torch.sparse_coo_tensor(index, value, (3, 4), check_invariants=True)
    normal = row_normalised(matrix.coalesce() if coalesced else matrix)
    assert normal.to_dense().tolist() == [[0, 0.25, 0, 0.75], [0, 0, 0, 0], [1, 0, 0, 0]]
