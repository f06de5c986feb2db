"""CL4SRec learns, and its contrast helps where histories are short and noisy.

In a world of long clean histories it does not: docs/fidelity.md has the figures. So there is no claim of that here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.learning import make_world, train

_SETTINGS = ["model.hidden=32", "model.inner=64", "train.epochs=14"]


@pytest.mark.slow
def test_it_beats_popularity_and_contrast_helps_on_short_noisy_histories(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {"popularity": [], "without": [], "with": []}
    for seed in (1, 2):  # one seed of 1,200 users is within .01 of its mean
        data = make_world(tmp_path / f"world-{seed}", seed=seed, accident=0.4, mean_length=5.0)
        for name, model, settings in (
            ("popularity", "popularity", []),
            ("without", "cl4srec", [*_SETTINGS, "model.lambda_contrast=0.0"]),
            ("with", "cl4srec", [*_SETTINGS, "model.lambda_contrast=0.1"]),
        ):
            found[name].append(train(data, tmp_path / f"{name}-{seed}", model, *settings)["HR@10"])
    popularity, without, contrast = (np.mean(values) for values in found.values())
    assert contrast > 1.5 * popularity
    assert contrast > without
