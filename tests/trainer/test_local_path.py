"""Runs that a command names: by name or by path, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.local_path import run_place, runs_beside


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_a_run_is_taken_before_another_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare --out data` advises `train --name data`: then ./data is the dataset, and runs/data the run."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    make_run(runs / "data")
    (tmp_path / "data").mkdir()
    assert run_place("data", runs) == runs / "data"
    assert run_place("runs/data", runs) == Path("runs/data")
    assert run_place(str(make_run(tmp_path / "far")), runs) == tmp_path / "far"
    assert run_place("absent", runs) == runs / "absent"


def test_runs_beside(tmp_path: Path) -> None:
    assert "holds no run; --runs-dir says" in runs_beside(tmp_path / "a")
    for number in range(12):
        make_run(tmp_path / f"wide-{number:02}")
    assert runs_beside(tmp_path / "wide-9") == "did you mean 'wide-09'?"
    assert runs_beside(tmp_path / "zzz").endswith("wide-06, wide-07 and 4 others")
