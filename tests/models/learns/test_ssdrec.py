"""SSDRec learns where many clicks are accidents; what its denoising is worth there stands in docs/fidelity.md."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.learning import make_world, train


def test_it_beats_popularity_among_accidents_and_denoising_costs_little(tmp_path: Path) -> None:
    data = make_world(tmp_path / "world", accident=0.4)
    settings = ["model.hidden=32", "model.inner=32", "train.epochs=5"]
    whole = train(data, tmp_path / "whole", "ssdrec", *settings)["HR@10"]
    without = train(data, tmp_path / "without", "ssdrec", *settings, "model.denoise=false")["HR@10"]
    popularity = train(data, tmp_path / "popularity", "popularity")["HR@10"]
    assert whole > 1.5 * popularity
    # no gain was seen in this world, nor a loss; one standard error is .011
    assert whole > without - 0.03
