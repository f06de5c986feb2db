"""Noise on the videos in a run: everywhere, or on the test targets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tiny_runs import make_config, make_dataset
from tests.helpers.training_runs import train
from trainer.cli import main
from trainer.evaluation.report import read_report


@pytest.fixture(scope="module", params=["mmgcn", "content-knn"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same system, which ranks by the videos, without noise, with it everywhere, and on the test targets."""
    folder = tmp_path_factory.mktemp("noise")
    data = make_dataset(folder / "data")
    for name, settings in (
        ("clean", []), ("all", ["data.noise=2"]), ("test", ["data.noise=2", "data.noise_in=test"]),
    ):  # fmt: skip
        own = ["model.field=visual"] if request.param == "content-knn" else []
        train(make_config(data, request.param, *own, *settings), folder / name)
    return folder


def _ranks(run: Path, split: str) -> Any:
    with np.load(run / f"ranks-{split}.npz") as arrays:
        return arrays["rank"]


def test_noise_on_the_test_targets_leaves_training_and_validation_as_they_are(runs: Path) -> None:
    clean, everywhere, tested = (runs / name for name in ("clean", "all", "test"))
    assert np.array_equal(_ranks(clean, "valid"), _ranks(tested, "valid"))
    assert not np.array_equal(_ranks(clean, "test"), _ranks(tested, "test"))
    assert not np.array_equal(_ranks(clean, "valid"), _ranks(everywhere, "valid"))
    assert read_report(clean / "valid.json")["inference"] == read_report(tested / "valid.json")["inference"]


def test_evaluating_again_gives_the_same(runs: Path, tmp_path: Path) -> None:
    for name in ("all", "test"):
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", "--run", str(runs / name), "--out", str(out)]) == 0
        assert read_report(out)["NDCG@10"] == read_report(runs / name / "test.json")["NDCG@10"]
