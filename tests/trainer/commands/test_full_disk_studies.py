"""A full disk in a study, its report and an update: one message, and a start that goes on once there is room."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.finished_study import write_study
from tests.helpers.small_disk import assert_refused, fill
from tests.helpers.tiny_runs import make_dataset
from tests.trainer.commands.test_full_disk import SETTINGS
from trainer.cli import main
from trainer.commands import update
from trainer.tracking.metrics_log import MetricsLog


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    runs = tmp_path_factory.mktemp("home") / "runs"
    assert main(["train", "--recipe", "demo", "--data", str(data), "--model", "sasrec", "--name", "a", "-q",
                 "--runs-dir", str(runs), *SETTINGS, "--set", "train.keep_optimizer=true"]) == 0  # fmt: skip
    return runs / "a"


@pytest.mark.parametrize("leave", [0, 64 << 10])
def test_report(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    """The page has 1 MB and more."""
    study = write_study(tmp_path / "runs/demo", only=["noise"])
    fill(disk, leave)
    report = ["report", "--study", str(study), "--out", str(disk / "report"), "--no-pictures"]
    assert_refused(capsys, disk, *report)


def grid(disk: Path, data: Path, *more: str) -> int:
    plan = ["--name", "g", "--systems", "sasrec", "--grid", "train.weight_decay=0,0.1", "--recipe", "demo"]
    return main(["study", *plan, "--data", str(data), "--runs-dir", str(disk), *SETTINGS, *more])


def test_a_study_that_cannot_begin(disk: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    assert grid(disk, data) == 2
    assert f"the disk of {disk}" in (err := capsys.readouterr().err)
    assert "is full: more is needed than there is, 0.0 MB are free; make room" in err
    assert not list(disk.rglob("*.json"))
    (disk / "filler").unlink()
    assert grid(disk, data, "--dry-run") == 0, "the name is free"


def test_a_study_whose_trials_find_no_room(disk: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each says why, and the study can go on."""
    real = MetricsLog.append

    def filling(self: MetricsLog, *arguments: Any) -> None:
        fill(disk, 0)
        *others, metrics = arguments
        real(
            self, *others, {**metrics, "more": dict.fromkeys(range(2000), 0)}
        )  # more than the file's page has room for

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "append", filling)
        assert grid(disk, data) == 2
    err = capsys.readouterr().err
    assert "is full: more is needed" in err
    assert "Traceback" not in err
    (disk / "filler").unlink()
    assert grid(disk, data, "--resume") == 0
    assert len(list(disk.glob("g/*/valid.json"))) == 2


@pytest.mark.parametrize("where", ["begin", "comparison"])
def test_update(run: Path, data: Path, disk: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    """Full at the weights that the new run begins with, or at what is noted of the comparison at its end."""
    shutil.copytree(run, disk / "a")
    command = ["update", "--run", "a", "--runs-dir", str(disk), "--data", str(data), "--set", "train.epochs=1"]
    if where == "begin":
        fill(disk, 0)
        assert main(command) == 2
    else:
        real = update._compare

        def filling(*arguments: Any) -> str:
            fill(disk, 0)
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(update, "_compare", filling)
            assert main(command) == 2
    err = capsys.readouterr().err
    assert "MB are free" in err
    assert "make room" in err or "free some space" in err
    assert "Traceback" not in err
    assert not list(disk.rglob("*.tmp"))
    (disk / "filler").unlink()
    assert main([*command, "--resume"]) == 0
    assert json.loads((disk / "a-u1/update.json").read_text())["from"] == "a"
