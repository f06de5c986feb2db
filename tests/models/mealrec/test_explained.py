"""The share of variance that a denoiser explains, by hand; and what a run says about one that does not denoise."""

from __future__ import annotations

import math

import pytest
import torch

from models.mealrec.explained import explained, idle


def test_shares_are_those_of_sums_over_all_values() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise, error = torch.randn(3, 50, 2, 3, generator=generator)
    clean = 5 + clean
    noisy, estimate = 0.9 * clean + 0.4 * noise, clean + 0.5 * error
    total = wrong = both = state = 0.0
    for step in range(2):
        for place in range(3):
            x, n, e = (values[:, step, place].tolist() for values in (clean, noisy, estimate))
            mean_x, mean_n = sum(x) / 50, sum(n) / 50
            total += sum((a - mean_x) ** 2 for a in x)
            wrong += sum((a - b) ** 2 for a, b in zip(x, e, strict=True))
            both += sum((a - mean_x) * (b - mean_n) for a, b in zip(x, n, strict=True))
            state += sum((b - mean_n) ** 2 for b in n)
    found = explained("tcd", clean, noisy, estimate)
    assert found["tcd/explained"].item() == pytest.approx(1 - wrong / total, rel=1e-4)
    # of all factors f, f = both / state makes the error of f times the noisy state least
    least = total - both**2 / state
    assert found["tcd/explained_by_input"].item() == pytest.approx(1 - least / total, rel=1e-4)


def test_the_mean_explains_nothing_and_one_row_has_no_variance() -> None:
    clean = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    mean = clean.mean(0).expand(20, 4)
    assert explained("npd", clean, clean, mean)["npd/explained"].item() == pytest.approx(0, abs=1e-6)
    assert explained("npd", clean, clean, clean)["npd/explained"] == 1
    alone = explained("npd", clean[:1], clean[:1], clean[1:2])
    assert [value.item() for value in alone.values()] == [0, 0]


def test_a_run_is_told_of_a_denoiser_below_its_input() -> None:
    good = {"tcd/explained": 0.93, "tcd/explained_by_input": 0.92}
    assert idle(good) == ()
    assert idle({}) == ()
    assert idle({"tcd/explained": math.nan, "tcd/explained_by_input": 0.92}) == ()
    (said,) = idle({**good, "npd/explained": 0.4, "npd/explained_by_input": 0.915})
    assert said == (
        "NPD does not denoise here: its estimate explains 40.0% of the variance of the preference, its noisy input "
        "times the best factor 91.5% (a larger model.lambda_npd makes it denoise; validation tells whether it ranks "
        "better then)"
    )
