"""mealrec train --parallel: several runs at a time, each as if it were alone; one that fails ends no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer import cli

SETTINGS = (*MODELS["sasrec"], *RUN[:-3], "cluster.launcher=ray", "cluster.threads=1", "tracking.mlflow=false")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("together") / "data")


def train(data: Path, runs: Path, *arguments: str) -> int:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    places = ["--recipe", "demo", "--data", str(data), "--runs-dir", str(runs), "--name", "many"]
    return cli.main(["train", *places, "--model", "sasrec", *options, *arguments])


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_runs_side_by_side_are_those_one_after_the_other_and_one_that_fails_ends_no_other(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    side, turn = tmp_path / "side", tmp_path / "turn"
    assert train(data, turn, "--seeds", "1,2", "--set", "cluster.launcher=inline") == 0
    shutil.copytree(turn / "many-s2", side / "many-s2")
    (side / "many-s2/test.json").unlink()
    for manifest in (side / "many-s2/checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    capfd.readouterr()
    assert train(data, side, "--seeds", "1,2", "--parallel", "2", "--resume") == 2
    said = capfd.readouterr()
    assert "2 runs, 2 at a time" in said.out
    assert "2/2 trials ended, 0 running, 1 failed" in said.out
    assert "1 of 2 runs failed; --resume tries them again" in said.err
    assert "many-s2: UserError: no checkpoint in" in said.err
    assert "epoch 2" in (side / "many-s1/console.log").read_text()
    one, two = (np.load(runs / "many-s1/ranks-test.npz") for runs in (side, turn))
    assert np.array_equal(one["rank"], two["rank"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parallel", "2"], "name several systems"),
        (["--seeds", "1,2", "--parallel", "0"], "at least one run"),
        (["--seeds", "1,2", "--parallel", "2", "--set", "cluster.workers=2"], "leave cluster.workers at 1"),
        (["--seeds", "1,2", "--parallel", "2", "--set", "cluster.launcher=inline"], "leave cluster.launcher at ray"),
    ],
)
def test_what_cannot_be_side_by_side_is_refused(
    arguments: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
