"""How large a difference between two runs is, with bootstrap intervals over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.metrics.base import Values
from retrieval.metrics.significance import DECIMALS, require_pairs

RESAMPLES = 2000
_SEED = 0
#: a variance that is a smaller part of the mean square is rounding
_ROUNDING = 1e-12
#: counts of users that are drawn at once: 8 MiB
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Effect:
    """An effect size with its percentile bootstrap interval. Infinite or NaN where it divides by zero."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EffectSizes:
    """relative: mean(a) / mean(b) - 1. d_z: Cohen's, the mean of `a - b` over its standard deviation over users."""

    relative: Effect
    d_z: Effect


def effect_sizes(a: Values, b: Values, confidence: float = 0.95, resamples: int = RESAMPLES) -> EffectSizes:
    """Effect sizes of a per-user metric of two runs on the same users, with intervals from `resamples` resamples.

    a, b: (n,) values of the same users in the same order, n >= 2. Equal vectors give zeros. The resamples are the same
    in each call. Raises UserError as `paired_t_test`.
    Source: Cohen 1988 (d_z); Efron 1979 (the percentile interval).
    """
    n = require_pairs(a, b)
    # a resample of users is known by how often each pair of values occurs in it; ranks within k give few pairs, so this
    # draws hundreds of numbers where drawing users would draw n
    pairs, counts = np.unique(a + 1j * b, return_counts=True)
    first, second = pairs.real, pairs.imag
    centred = first - second - float(np.mean(a - b))
    values = np.stack([first, second, centred, centred**2], axis=1)
    observed = _sizes((counts @ values / n)[None], n)[0]
    rng = np.random.default_rng(_SEED)
    step = max(1, _CHUNK // len(pairs))
    drawn = np.concatenate([
        _sizes(rng.multinomial(n, counts / n, size=min(step, resamples - start)) @ values / n, n)
        for start in range(0, resamples, step)
    ])  # fmt: skip
    tail = (1 - confidence) / 2
    # a resample may be infinite, and interpolation between it and another would not be a number
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    relative, d_z = (Effect(*map(float, each)) for each in zip(observed, low, high, strict=True))
    return EffectSizes(relative, d_z)


def _sizes(means: Values, n: int) -> Values:
    """(R, 2) relative difference and d_z. means: (R, 4) over users of a, b, the centred difference, and its square."""
    a, b, centred, squares = means.T
    variance = squares - centred**2
    variance = np.where(variance > _ROUNDING * squares, variance, 0.0)
    spread = np.sqrt(variance * n / (n - 1))
    difference = np.round(a - b, DECIMALS)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.stack([difference / b, difference / spread], axis=1)
    return np.where(difference[:, None] == 0, 0.0, sizes)
