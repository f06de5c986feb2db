"""`mealrec study` as a user calls it: what it refuses, a dry run, a grid of its own, going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_dataset(tmp_path_factory.mktemp("data") / "tiny"))


SMALL = [part for setting in (*MODELS["sasrec"], *RUN) for part in ("--set", setting)]


def _study(runs: Path, data: str, *more: str) -> int:
    return main(["study", "--runs-dir", str(runs), "--data", data, "--recipe", "demo", *SMALL, *more])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "a"], "give --plan (ablation, complexity"),
        (["--name", "a", "--plan", "noise", "--grid", "model.layers=1"], "are for a study without --plan"),
        (["--name", "a", "--plan", "noise", "--systems", "mealrek"], "did you mean 'mealrec'"),
        (["--name", "a", "--plan", "noise", "--systems", "sasrec"], "does not train 'sasrec'"),
        (["--name", "a", "--plan", "tabel2"], "did you mean 'table2'"),
        (["--name", "a/b", "--plan", "table2"], "not a plain folder name"),
        (["--name", "a", "--plan", "table2", "--scale", "tny"], "did you mean 'tiny'"),
        (["--name", "a", "--grid", "model.layers=1"], "--systems: name the systems"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.layers"], "--grid model.layers: write it as"),
        (["--name", "a", "--systems", "sasrec", "--search", "model.layers=1..3"], "--search needs --trials"),
        (
            ["--name", "a", "--systems", "sasrec", "--grid", "model.layers=1", "--trials", "2"],
            "--search needs --trials",
        ),
        (["--name", "a", "--systems", "sasrek", "--grid", "model.layers=1"], "did you mean 'sasrec'"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.layerz=1"], "did you mean 'layers'"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.layers=1", "--seeds", "1,x"], "--seeds 1,x"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.layers=1", "--parallel", "0"], "--parallel 0"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.hidden=8,16"], "varies model.hidden"),
        (["--name", "a", "--systems", "sasrec", "--grid", "model.layers=1", "--data", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    tmp_path: Path, data: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _study(tmp_path / "runs", data, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_strict_refuses_data_that_lack_content(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--name", "a", "--systems", "sasrec,iisan", "--grid", "train.patience=1", "--dry-run"]
    assert main(["study", "--runs-dir", str(tmp_path / "runs"), "--data", data, *arguments, "--strict"]) == 2
    told = capsys.readouterr().err
    assert "without iisan on tiny" in told
    assert "visual_layers" in told


def test_a_plan_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--name", "a", "--plan", "table2"]) == 2
    assert "no dataset: give --data" in capsys.readouterr().err


def test_a_mistake_leaves_no_generated_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--plan", "embedding", "--scale", "tiny", "--name", "a", "--set", "model.stepz=3"]
    assert main(["study", *wrong, "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


GRID = ["--name", "g", "--systems", "sasrec", "--grid", "train.weight_decay=0,0.1"]


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _study(tmp_path / "runs", data, *GRID, "--dry-run", "--parallel", "2") == 0
    told = capsys.readouterr().out
    assert "2 at once: at most" in told
    row = next(line.split() for line in told.splitlines() if line.startswith("grid"))
    assert row[1:3] == ["2", "2"]
    assert not (tmp_path / "runs").exists()


def test_a_grid_is_trained_chosen_from_and_gone_on_with(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert _study(runs, data, *GRID) == 0
    told = capsys.readouterr().out
    assert "g: 2 trials, 0 of them finished earlier" in told
    assert "grid, tiny: validation chose sasrec weight_decay=" in told
    assert f"mealrec report --study g --runs-dir {runs}" in told
    content = json.loads((runs / "g" / "study.json").read_text())
    assert [trial["factors"] for trial in content["trials"]] == [
        {"train.weight_decay": 0}, {"train.weight_decay": 0.1},
    ]  # fmt: skip
    assert content["parts"][0]["figure"] == "lines"

    assert _study(runs, data, *GRID) == 2
    assert "study 'g' exists" in capsys.readouterr().err
    fewer = [*GRID[:-1], "train.weight_decay=0"]
    assert _study(runs, data, *fewer, "--resume") == 2
    assert "1 trials that this command does not name" in capsys.readouterr().err
    more = [*GRID[:-1], "train.weight_decay=0,0.1,0.2"]
    assert _study(runs, data, *more, "--resume") == 0
    assert "g: 3 trials, 2 of them finished earlier" in capsys.readouterr().out
    assert len(list(runs.glob("g/*/valid.json"))) == 3
