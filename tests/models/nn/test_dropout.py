"""Our dropout for CPUs: the right share, unbiased, independent, reproducible; and attention with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.nn.dropout import Dropout, attention, dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropped_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(200_001), p, training=True)
    kept = (y != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / y.numel())
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert y.mean().item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / y.numel()))


def test_neighbours_are_dropped_independently() -> None:
    """One draw gives four lanes, which must be independent of each other."""
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(400_000), 0.5, training=True) == 0).double() - 0.5
    for lag in range(1, 9):
        assert abs((dropped[lag:] * dropped[:-lag]).mean().item()) < 5 * 0.25 / math.sqrt(400_000)


def test_draws_follow_torchs_seed_and_gradients_follow_the_mask() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(2)
    one = dropout(x, 0.4, training=True)
    torch.manual_seed(2)
    assert torch.equal(one, dropout(x, 0.4, training=True))
    assert not torch.equal(one, dropout(x, 0.4, training=True))
    (gradient,) = torch.autograd.grad(one.sum(), x)
    assert torch.equal(gradient == 0, one == 0)


def test_identity_outside_training() -> None:
    module, x = Dropout(0.5), torch.randn(4)
    assert module.eval()(x) is x
    assert dropout(x, 0.0, training=True) is x
    assert not torch.equal(module.train()(x.repeat(50)), x.repeat(50))


@pytest.mark.parametrize("masked", [True, False])
def test_attention_with_dropout_averages_to_attention_without(masked: bool) -> None:
    torch.manual_seed(3)
    query, key, value = (torch.randn(1, 2, 3, 4) for _ in range(3))
    mask = torch.ones(3, 3, dtype=torch.bool).tril() if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attention(query, key, value, mask), expected)
    many = [x.expand(20_000, -1, -1, -1) for x in (query, key, value)]
    draws = attention(many[0], many[1], many[2], mask, 0.3)
    error = draws.std(0) / math.sqrt(20_000)
    assert ((draws.mean(0) - expected[0]).abs() <= 5 * error + 1e-6).all()


def test_a_position_that_sees_nothing_gives_zeros_not_nan() -> None:
    x = torch.randn(1, 1, 2, 4, requires_grad=True)
    mask = torch.tensor([[False, False], [True, True]])
    y = attention(x, x, x, mask, 0.5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not y[0, 0, 0].any()
    assert torch.isfinite(y).all()
    assert torch.isfinite(gradient).all()
