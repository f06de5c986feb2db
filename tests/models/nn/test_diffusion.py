"""The diffusion process against Eq. 1 iterated step by step, and its posterior against Bayes' rule on a grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nn.diffusion import Diffusion, betas
from models.options.base import ScheduleKind


@pytest.mark.parametrize("kind", ["linear", "cosine", "trunc_lin"])
def test_corrupt_is_the_marginal_of_the_chain_of_eq_1(kind: ScheduleKind) -> None:
    diffusion = Diffusion(kind, 25)
    signal, variance = 1.0, 0.0
    one, zero = torch.ones(1), torch.zeros(1)
    assert diffusion.corrupt(one, torch.tensor([0]), one).item() == 1.0
    for t, beta in enumerate(betas(kind, 25).tolist(), start=1):
        signal, variance = math.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        step = torch.tensor([t])
        assert diffusion.corrupt(one, step, zero).item() == pytest.approx(signal, rel=1e-6)
        assert diffusion.corrupt(zero, step, one).item() ** 2 == pytest.approx(variance, rel=1e-6)


def test_the_range_of_a_linear_schedule_is_given() -> None:
    by_hand = (1 - 1e-4) * (1 - 1.05e-3) * (1 - 2e-3)
    x_t = Diffusion("linear", 3, 1e-4, 2e-3).corrupt(torch.ones(1), torch.tensor([3]), torch.zeros(1))
    assert x_t.item() ** 2 == pytest.approx(by_hand, rel=1e-6)


def test_corrupt_takes_a_step_per_row() -> None:
    diffusion = Diffusion("linear", 10)
    x, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    steps = torch.tensor([10, 0, 3])
    together = diffusion.corrupt(x, steps, noise)
    for row in range(3):
        part = slice(row, row + 1)
        torch.testing.assert_close(together[part], diffusion.corrupt(x[part], steps[part], noise[part]))


def test_clean_undoes_corrupt_at_every_step() -> None:
    diffusion, steps = Diffusion("linear", 100), torch.arange(101)
    x, noise = torch.randn(2, 101, 3, dtype=torch.float64)
    torch.testing.assert_close(diffusion.clean(diffusion.corrupt(x, steps, noise), steps, noise), x)


def test_corrupted_samples_have_the_mean_and_variance_of_eq_2() -> None:
    torch.manual_seed(0)
    alpha_bar = math.prod(1 - b for b in betas("linear", 25).tolist()[:20])
    x_t = Diffusion("linear", 25).corrupt(torch.full((200_000,), 2.0), torch.full((200_000,), 20), torch.randn(200_000))
    assert x_t.mean().item() == pytest.approx(2 * math.sqrt(alpha_bar), abs=0.005)
    assert x_t.var().item() == pytest.approx(1 - alpha_bar, rel=0.02)


@pytest.mark.parametrize(("steps", "signal"), [(5, 0.951), (10, 0.904), (15, 0.859), (20, 0.817), (25, 0.777)])
def test_linear_schedule_is_not_rescaled_so_that_t_sets_the_corruption(steps: int, signal: float) -> None:
    """alpha_bar_T of decision D11, from prod(1 - beta_t) with beta from 1e-4 to .02."""
    by_hand = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / (steps - 1)) for i in range(steps))
    x_t = Diffusion("linear", steps).corrupt(torch.ones(1), torch.tensor([steps]), torch.zeros(1))
    assert x_t.item() ** 2 == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(signal, abs=0.001)


def test_cosine_schedule_wipes_the_signal_out() -> None:
    """Nichol and Dhariwal: beta from f(t) = cos^2((t / T + .008) / 1.008 pi / 2), clipped at .999."""
    beta = betas("cosine", 25)
    assert beta.min() > 0
    assert beta.max().item() == 0.999

    def f(t: int) -> float:
        return math.cos((t / 25 + 0.008) / 1.008 * math.pi / 2) ** 2

    torch.testing.assert_close(beta[:-1], torch.tensor([1 - f(t) / f(t - 1) for t in range(1, 25)]).double())
    assert math.prod(1 - b for b in beta.tolist()) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 20, 21, 32, 1000])
def test_trunc_lin_is_rescaled_raised_and_never_passes_1(steps: int) -> None:
    """DiffuRec's: from 1000/T * 1e-4 + .01 to 1000/T * .02 + .01, or 1000/T * 1e-3 + .01 where that passes 1."""
    beta = betas("trunc_lin", steps)
    assert beta[0].item() == pytest.approx(0.1 / steps + 0.01)
    if steps > 1:
        assert beta[-1].item() == pytest.approx((20 if steps > 20 else 1) / steps + 0.01)
        torch.testing.assert_close(beta.diff(), beta.diff()[:1].expand(steps - 1))
    assert ((beta > 0) & (beta < 1)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 25), st.integers(1, 24), st.floats(-2, 2), st.floats(-2, 2))
def test_posterior_mean_is_bayes_rule_on_gaussians(t: int, s: int, x_0: float, x_t: float) -> None:
    """E[x_s] under q(x_s | x_0) q(x_t | x_s), both densities enumerated on a grid."""
    if s >= t:
        s = t - 1
    beta = betas("linear", 25).tolist()
    prior, step = (math.prod(1 - b for b in part) for part in (beta[:s], beta[s:t]))
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    log_density = -((grid - math.sqrt(prior) * x_0) ** 2) / (2 * (1 - prior))
    log_density = log_density - (x_t - math.sqrt(step) * grid) ** 2 / (2 * (1 - step))
    density = (log_density - log_density.max()).exp()
    expected = ((grid * density).sum() / density.sum()).item()
    one = torch.ones(1, dtype=torch.float64)
    actual = Diffusion("linear", 25).posterior_mean(x_0 * one, x_t * one, t, s).item()
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "trunc_lin"])
def test_reverse_chain_with_a_perfect_predictor_returns_x_0_exactly(kind: ScheduleKind) -> None:
    x_0, seen = torch.randn(4, 3), []

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        assert x_t.shape == x_0.shape
        seen.append(t)
        return x_0

    diffusion = Diffusion(kind, 7)
    assert torch.equal(diffusion.reverse(torch.randn(4, 3), 7, predict), x_0)
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    seen.clear()
    assert torch.equal(diffusion.reverse(torch.randn(4, 3), 3, predict), x_0)
    assert seen == [3, 2, 1]


def test_reverse_chain_follows_the_textbook_posterior() -> None:
    """DDPM's one step: (sqrt(ab_{t-1}) beta_t x_0 + sqrt(1 - beta_t) (1 - ab_{t-1}) x_t) / (1 - ab_t)."""
    beta = [0.0, *betas("linear", 6).tolist()]
    x = x_t = torch.randn(5, dtype=torch.float64)
    for t in range(6, 0, -1):
        before, now = math.prod(1 - b for b in beta[:t]), math.prod(1 - b for b in beta[: t + 1])
        estimate = torch.tanh(x + t)
        x = (math.sqrt(before) * beta[t] * estimate + math.sqrt(1 - beta[t]) * (1 - before) * x) / (1 - now)
    torch.testing.assert_close(Diffusion("linear", 6).reverse(x_t, 6, lambda y, t: torch.tanh(y + t)), x)
