"""A full disk, in every verb that writes: one message that says what is free and what to do, and nothing half-made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.helpers.small_disk import fill, small_disk
from tests.helpers.tiny_runs import MODELS, RUN
from trainer.cli import main

SETTINGS = [word for setting in [*MODELS["sasrec"], *RUN, "train.epochs=1"] for word in ("--set", setting)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a run of SASRec and its export."""
    home = tmp_path_factory.mktemp("home")
    assert main(["prepare", "synthetic", "--users", "80", "--items", "60", "--topics", "3", "--frames", "3",
                 "--width", "8", "--text-width", "6", "--out", str(home / "data")]) == 0  # fmt: skip
    runs = ["--runs-dir", str(home / "runs")]
    assert main(["train", "--recipe", "demo", "--data", str(home / "data"), "--model", "sasrec", "--name", "a", *runs,
                 *SETTINGS]) == 0  # fmt: skip
    assert main(["export", "--run", "a", *runs, "--out", str(home / "model")]) == 0
    return home


def refused(capsys: pytest.CaptureFixture[str], disk: Path, *command: str) -> None:
    """The command fails with one message about the disk, and leaves it as it was."""
    before = sorted(disk.rglob("*"))
    capsys.readouterr()
    assert main([*command]) == 2
    err = capsys.readouterr().err
    assert "is full: more" in err
    assert "MB are free; make room or choose another place" in err
    assert sorted(disk.rglob("*")) == before


@pytest.mark.parametrize("leave", [0, 8 << 10, 64 << 10])
def test_prepare_synthetic(disk: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    fill(disk, leave)
    refused(capsys, disk, "prepare", "synthetic", "--users", "900", "--items", "600", "--out", str(disk / "out"))


@pytest.mark.parametrize("leave", [0, 8 << 10, 64 << 10])
def test_prepare_table(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    rows = [f"user {u},item {(u * 7 + at) % 5000},{at}" for u in range(3000) for at in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core-on", "none"]
    fill(disk, leave)
    refused(capsys, disk, "prepare", "table", "--file", str(tmp_path / "log.csv"), *columns, "--out", str(disk / "out"))


@pytest.mark.parametrize("leave", [0, 8 << 10])
def test_export(home: Path, disk: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    fill(disk, leave)
    refused(capsys, disk, "export", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "out"))


def test_index(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(home / "model", disk / "model")
    (model / "index").mkdir()
    fill(disk, 0)
    refused(capsys, disk, "index", "--model", str(model), "--kind", "flat")


def test_evaluate(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    refused(
        capsys, disk, "evaluate", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "report.json")
    )


@pytest.mark.parametrize("leave", [0, 64 << 10])
def test_recommend(home: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    """Of many users: the disk is full in the middle."""
    users = pl.DataFrame({"user": range(20_000), "items": [[f"i{n % 60 + 1}"] for n in range(20_000)]})
    users.write_parquet(tmp_path / "users.parquet")
    fill(disk, leave)
    files = ["--histories", str(tmp_path / "users.parquet"), "--out", str(disk / "out.parquet")]
    refused(capsys, disk, "recommend", "--model", str(home / "model"), *files, "--k", "20")


def test_extract(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "titles.csv").write_text("item,title\na,one cat\nb,two dogs\n")
    fill(disk, 0)
    arguments = ["--titles", str(tmp_path / "titles.csv"), "--encoder", "glove", "--launcher", "inline"]
    refused(capsys, disk, "extract", "titles", *arguments, "--out", str(disk / "out"))


def test_a_disk_that_may_only_be_read(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert main(["export", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "out")]) == 2
    assert "is on a disk that may only be read; choose another place" in capsys.readouterr().err
