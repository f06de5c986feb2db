"""Keyed noise: right distributions, independent across keys, streams and elements, and a function of the key only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.nn.noise import KeyedNoise, Stream, hash32

SHAPE = (5, 8)
KEYS = torch.arange(10_000)
# keys as training makes them: row in the low half, epoch in the high half
EPOCHS = KEYS % 100 + ((KEYS // 100) << 32)


@pytest.mark.parametrize("keys", [KEYS, EPOCHS], ids=["rows", "rows and epochs"])
@pytest.mark.parametrize("seed", [0, 2020, 2**40 + 1])
def test_normal_values_are_standard_normal(keys: torch.Tensor, seed: int) -> None:
    values = KeyedNoise(seed).normal(keys, SHAPE, Stream.TCD_NOISE).double().numpy().ravel()
    error = 1 / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert abs(values.var() - 1) < 4 * np.sqrt(2) * error
    assert abs(stats.skew(values)) < 4 * np.sqrt(6) * error
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24) * error
    assert stats.kstest(values, "norm").pvalue > 1e-4


def test_the_tails_are_there_and_finite() -> None:
    values = KeyedNoise(0).normal(torch.arange(40_000), (50,), Stream.NPD_NOISE)
    assert torch.isfinite(values).all()
    expected = 2 * stats.norm.sf(4) * values.numel()  # about 127 values beyond 4 sigma
    assert abs((values.abs() > 4).sum().item() - expected) < 5 * np.sqrt(expected)


def _correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(np.corrcoef(one.double().numpy().ravel(), two.double().numpy().ravel())[0, 1])


def test_streams_seeds_keys_epochs_and_elements_are_uncorrelated() -> None:
    noise = KeyedNoise(1)
    base = noise.normal(KEYS, SHAPE, Stream.TCD_NOISE)
    limit = 5 / np.sqrt(base.numel())
    others = {
        "stream": noise.normal(KEYS, SHAPE, Stream.NPD_NOISE),
        "seed": KeyedNoise(2).normal(KEYS, SHAPE, Stream.TCD_NOISE),
        "next key": noise.normal(KEYS + 1, SHAPE, Stream.TCD_NOISE),
        "next epoch": noise.normal(KEYS + (1 << 32), SHAPE, Stream.TCD_NOISE),
        "next element": base.roll(1, 2),
        "next step": base.roll(1, 1),
    }
    for name, other in others.items():
        assert abs(_correlation(base, other)) < limit, name
        assert abs(_correlation(base**2, other**2)) < limit, name


def test_elements_of_a_row_are_jointly_normal() -> None:
    """The covariance of the elements over keys is the identity (Box-Muller pairs included)."""
    flat = KeyedNoise(4).normal(KEYS, (12,), Stream.GATE_NOISE).double()
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(12)).abs().max() < 5 * np.sqrt(2 / len(flat))


@given(st.permutations(list(range(8))), st.integers(1, 7))
def test_a_row_draws_the_same_in_any_batch(order: list[int], cut: int) -> None:
    noise, keys = KeyedNoise(7), torch.arange(8) * 12_345_678_901
    whole = noise.normal(keys, (3, 3), Stream.NPD_CHAIN)
    assert torch.equal(noise.normal(keys[order], (3, 3), Stream.NPD_CHAIN), whole[order])
    halves = [noise.normal(part, (3, 3), Stream.NPD_CHAIN) for part in (keys[:cut], keys[cut:])]
    assert torch.equal(torch.cat(halves), whole)
    steps = noise.integers(keys, 1, 25, Stream.NPD_STEP)
    assert torch.equal(noise.integers(keys[order], 1, 25, Stream.NPD_STEP), steps[order])
    assert torch.equal(KeyedNoise(7).normal(keys, (3, 3), Stream.NPD_CHAIN), whole)


def test_drawing_leaves_torchs_own_generator_alone() -> None:
    state = torch.random.get_rng_state()
    KeyedNoise(0).normal(KEYS, SHAPE, Stream.TCD_NOISE)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("keys", [KEYS, EPOCHS], ids=["rows", "rows and epochs"])
@pytest.mark.parametrize(("low", "high"), [(1, 25), (1, 5), (0, 1), (3, 3)])
def test_integers_are_uniform_on_both_ends(keys: torch.Tensor, low: int, high: int) -> None:
    values = KeyedNoise(9).integers(keys, low, high, Stream.TCD_STEP)
    assert values.dtype == torch.int64
    counts = torch.bincount(values - low, minlength=high - low + 1)
    assert len(counts) == high - low + 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4 if high > low else counts.item() == len(keys)


def test_steps_of_the_two_diffusions_are_independent() -> None:
    noise = KeyedNoise(9)
    one, two = (noise.integers(KEYS, 1, 5, s) for s in (Stream.TCD_STEP, Stream.NPD_STEP))
    table = torch.bincount(5 * (one - 1) + two - 1, minlength=25).view(5, 5)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-4


@given(st.lists(st.integers(0, 2**32 - 1), unique=True, min_size=2, max_size=50))
def test_hash_is_a_bijection_of_32_bits(values: list[int]) -> None:
    hashed = hash32(torch.tensor(values)).tolist()
    assert len(set(hashed)) == len(values)
    assert all(0 <= h < 2**32 for h in hashed)
