"""DMMD4SR learns the synthetic world, and ranks better with fused content in the history than with IDs alone.

There is no test of its denoising, whose effect was within the noise between seeds (docs/fidelity.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.learning import make_world, train
from trainer.data.format.dataset import Dataset

_SETTINGS = ("train.epochs=6", "model.hidden=32", "model.inner=64")


def _world(folder: Path, seed: int, users: int = 1200) -> Path:
    """40 % of the items appear after training: in the histories of the test, only their content is known.

    DMMD4SR ranks by IDs, so it cannot find such items as targets. HR@10 is compared on the other (warm) targets.
    """
    return make_world(folder, cold=0.4, seed=seed, users=users)


def _popularity(data: Path) -> float:
    """HR@10 of the ten items that occur most in training rows."""
    dataset = Dataset.open(data)
    targets = dataset.items[dataset.eval_rows("test")[1]]
    return float(np.isin(targets, np.argsort(-dataset.train_counts())[:10]).mean())


def test_beats_popularity(tmp_path: Path) -> None:
    data = _world(tmp_path / "data", 1, users=600)
    report = train(data, tmp_path / "run", "dmmd4sr", *_SETTINGS, "train.epochs=3", "train.batch_size=128")
    assert report["HR@10"] > 1.5 * _popularity(data)


@pytest.mark.long
def test_fused_content_helps_where_histories_end_in_new_items(tmp_path: Path) -> None:
    gains = []
    for seed in (1, 2):
        data = _world(tmp_path / f"data{seed}", seed)
        variants = {"content": "model.use_denoising=false", "ids": "model.use_content=false"}
        reports = {
            name: train(data, tmp_path / f"{name}{seed}", "dmmd4sr", *_SETTINGS, variant)
            for name, variant in variants.items()
        }
        gains.append(reports["content"]["warm"]["HR@10"] - reports["ids"]["warm"]["HR@10"])
    print("found: warm HR@10 with content minus with ids alone, by seed:", " ".join(f"{gain:+.4f}" for gain in gains))
    assert np.mean(gains) > 0
