"""The full-softmax losses against F.cross_entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.losses import softmax
from models.losses.softmax import cosine_full_softmax_cross_entropy, full_softmax_cross_entropy
from tests.helpers.model_fixtures import assert_same


def _inputs(rows: int, items: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + items)
    user = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    item = torch.randn(items, width, generator=generator, dtype=dtype).requires_grad_()
    return user, item, torch.randint(1, items, (rows,), generator=generator)


def _reference(user: Tensor, item: Tensor, target: Tensor, scale: float) -> Tensor:
    return F.cross_entropy(scale * user @ item[1:].T, target - 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(2, 30), st.integers(1, 5), st.floats(0.1, 10))
def test_dot_loss_and_gradients_equal_cross_entropy_without_the_padding_column(
    rows: int, items: int, width: int, scale: float
) -> None:
    user, item, target = _inputs(rows, items, width)
    actual = full_softmax_cross_entropy(user, item, target, scale)
    assert_same(actual, _reference(user, item, target, scale), [user, item])


def test_rows_that_take_several_slices_are_all_counted() -> None:
    """With 200,000 items, ten rows are 8 MB of float32 logits, so 23 rows make three slices; the last one is short."""
    user, item, target = _inputs(23, 200_000, 2)
    assert_same(full_softmax_cross_entropy(user, item, target), _reference(user, item, target, 1.0), [user, item])


def test_padding_row_takes_no_part_and_gets_no_gradient() -> None:
    user, item, target = _inputs(5, 9, 3)
    loss = full_softmax_cross_entropy(user, item, target)
    (gradient,) = torch.autograd.grad(loss, item)
    with torch.no_grad():
        item[0] = 1000.0
    assert torch.equal(full_softmax_cross_entropy(user, item, target), loss)
    assert not gradient[0].any()
    assert gradient[1:].any()


def test_cosine_loss_is_cross_entropy_of_cosines_over_temperature() -> None:
    user, item, target = _inputs(7, 11, 4)
    cosines = torch.stack([torch.stack([u @ i / (u.norm() * i.norm()) for i in item[1:]]) for u in user])
    log_p = cosines / 0.07 - torch.exp(cosines / 0.07).sum(1, keepdim=True).log()
    expected = -torch.stack([log_p[row, t - 1] for row, t in enumerate(target.tolist())]).mean()
    assert_same(cosine_full_softmax_cross_entropy(user, item, target, 0.07), expected, [user, item])


@pytest.mark.parametrize("loss", [full_softmax_cross_entropy, cosine_full_softmax_cross_entropy])
def test_gradcheck(loss: object) -> None:
    user, item, target = _inputs(4, 6, 3)
    assert callable(loss)
    assert torch.autograd.gradcheck(lambda u, i: loss(u, i, target, 0.7), (user, item))


def test_gradient_scales_with_the_weight_of_the_loss() -> None:
    user, item, target = _inputs(4, 6, 3)
    single = torch.autograd.grad(full_softmax_cross_entropy(user, item, target), [user, item])
    tripled = torch.autograd.grad(3 * full_softmax_cross_entropy(user, item, target), [user, item])
    for one, three in zip(single, tripled, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_bf16_autocast_stays_close_and_leaves_float32_gradients() -> None:
    user, item, target = _inputs(64, 200, 16, torch.float32)
    expected = _reference(user, item, target, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = full_softmax_cross_entropy(user, item, target)
    assert actual.dtype == torch.float32
    assert abs(actual.item() - expected.item()) < 0.02 * expected.item()
    for got, wanted in zip(
        torch.autograd.grad(actual, [user, item]), torch.autograd.grad(expected, [user, item]), strict=True
    ):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_large_logits_do_not_overflow() -> None:
    user, item, target = _inputs(3, 8, 2)
    loss = full_softmax_cross_entropy(user.float(), item.float(), target, 1e4)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [user, item]))


def test_gradients_of_slices_in_bf16_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 slices of one row: summed in bfloat16, each would be rounded to 8 bits of the sum."""
    torch.manual_seed(0)
    users, items, target = torch.randn(2048, 16), torch.randn(50, 16), torch.randint(1, 50, (2048,))

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        leaf = items.to(dtype, copy=True).requires_grad_()
        full_softmax_cross_entropy(users.to(dtype), leaf, target).backward()
        assert leaf.grad is not None
        return leaf.grad.double()

    exact = gradient(torch.float64)
    monkeypatch.setattr(softmax, "_SLICE_BYTES_CPU", 1)  # slices of _SLICE_ROWS
    error = float((gradient(torch.bfloat16) - exact).norm() / exact.norm())
    assert error < 6e-3, error
