"""A full disk, in every verb that writes: one message that says what is free and what to do, and nothing half-made.

Studies, their reports and updates are in `test_full_disk_studies.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cluster.head import free_ports
from models.errors import UserError
from tests.helpers.extraction_job import run as number_extraction
from tests.helpers.inspected import made, named, title
from tests.helpers.small_disk import assert_refused, fill, small_disk
from tests.helpers.tiny_runs import MODELS, RUN
from trainer.cli import main
from trainer.evaluation.evaluate import Evaluation
from trainer.extract.pipeline.work import Work
from trainer.extract.titles.job import TitleJob
from trainer.tracking.metrics_log import MetricsLog
from trainer.training import worker
from trainer.training.checkpoint import CheckpointStore

SETTINGS = [word for setting in [*MODELS["sasrec"], *RUN, "train.epochs=1"] for word in ("--set", setting)]


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


@pytest.mark.parametrize("leave", [0, 8 << 10, 64 << 10])
def test_prepare_synthetic(disk: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    fill(disk, leave)
    assert_refused(capsys, disk, "prepare", "synthetic", "--users", "900", "--items", "600", "--out", str(disk / "out"))


@pytest.mark.parametrize("leave", [0, 8 << 10, 64 << 10])
def test_prepare_table(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    rows = [f"user {u},item {(u * 7 + at) % 5000},{at}" for u in range(3000) for at in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core-on", "none"]
    fill(disk, leave)
    assert_refused(
        capsys, disk, "prepare", "table", "--file", str(tmp_path / "log.csv"), *columns, "--out", str(disk / "out")
    )


@pytest.mark.parametrize("leave", [0, 64 << 10, 2 << 20])
@pytest.mark.parametrize("extracted", [False, True])
def test_prepare_features(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int, extracted: bool
) -> None:
    """The vectors have 2.7 MB as float16, and for those of an extraction there is a copy while they are read."""
    rows = [f"user {u},i{(u * 7 + at) % 900},{at}" for u in range(900) for at in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    vectors, folder = np.random.default_rng(0).standard_normal((900, 1500)), tmp_path / "features"
    if extracted:
        made(folder, TitleJob("e"), {"text": vectors}, named(900))
    else:
        folder.mkdir()
        (folder / "ids.txt").write_text("".join(f"i{n}\n" for n in range(900)))
        np.save(folder / "text.npy", vectors)
    log = ["--file", str(tmp_path / "log.csv"), "--user", "user", "--item", "item", "--time", "time"]
    fill(disk, leave)
    assert_refused(capsys, disk, "prepare", "table", *log, "--features", str(folder), "--out", str(disk / "out"))


@pytest.mark.parametrize("leave", [0, 8 << 10])
def test_export(home: Path, disk: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    fill(disk, leave)
    assert_refused(capsys, disk, "export", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "out"))


def test_index(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(home / "model", disk / "model")
    (model / "index").mkdir()
    fill(disk, 0)
    assert_refused(capsys, disk, "index", "--model", str(model), "--kind", "flat")


def test_evaluate(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    assert_refused(
        capsys, disk, "evaluate", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "report.json")
    )


@pytest.mark.parametrize("leave", [0, 64 << 10])
def test_recommend(home: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: int) -> None:
    """Of many users: the disk is full in the middle."""
    users = pl.DataFrame({"user": range(20_000), "items": [[f"i{n % 60 + 1}"] for n in range(20_000)]})
    users.write_parquet(tmp_path / "users.parquet")
    fill(disk, leave)
    files = ["--users", str(tmp_path / "users.parquet"), "--out", str(disk / "out.parquet")]
    assert_refused(capsys, disk, "recommend", "--model", str(home / "model"), *files, "--k", "20")


def test_extract(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "titles.csv").write_text("item,title\na,one cat\nb,two dogs\n")
    fill(disk, 0)
    arguments = ["--titles", str(tmp_path / "titles.csv"), "--encoder", "glove", "--launcher", "inline"]
    assert_refused(capsys, disk, "extract", "titles", *arguments, "--out", str(disk / "out"))


def test_extract_midway(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was encoded before the disk was full stays; with room, the same command goes on."""
    done, keep = [], Work.keep

    def filling(self: Work, data: bytes) -> None:
        done.append(fill(disk, 0) if len(done) == 2 else None)
        keep(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "keep", filling)
        with pytest.raises(UserError, match=r"disk of .* is full: more .*MB are free; make room"):
            number_extraction(disk / "out", [str(n) for n in range(12)])
    assert not list(disk.rglob("*.tmp"))
    (disk / "filler").unlink()
    number_extraction(disk / "out", [str(n) for n in range(12)])
    assert "going on: 8 of 12 items are done" in capsys.readouterr().out


def train_on(disk: Path, home: Path, *more: str) -> int:
    settings = [*SETTINGS, "--set", "train.epochs=2"]
    return main(["train", "--recipe", "demo", "--data", str(home / "data"), "--model", "sasrec", "--name", "b",
                 "--runs-dir", str(disk), *settings, *more])  # fmt: skip


@pytest.mark.parametrize("where", ["metrics", "checkpoint", "ranks", "report"])
def test_train(home: Path, disk: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    """Full at a line of metrics, a checkpoint, or the files of the end; with room, --resume ends the run."""
    owner: Any
    owner, method = {
        "metrics": (MetricsLog, "append"),
        "checkpoint": (CheckpointStore, "commit"),
        "ranks": (Evaluation, "save"),
        "report": (worker, "write_json"),
    }[where]
    real = getattr(owner, method)

    calls = []

    def filling(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if where == "metrics" and len(calls) == 2:  # more than the free end of the page that the file has already
            *arguments, metrics = arguments
            arguments = (*arguments, {**metrics, "more": dict.fromkeys(range(2000), 0)})
        if len(calls) == (2 if where == "metrics" else 1):
            fill(disk, 0)
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, filling)
        assert train_on(disk, home) == 2
    err = capsys.readouterr().err
    if where == "checkpoint":
        assert "no space left for the checkpoint of step 10: it needs" in err
    else:
        assert f"error: the disk of {disk}/b is full: more" in err
    assert "MB are free" in err
    assert "Traceback" not in err
    left = [path for path in disk.rglob("*") if path.name.endswith(".tmp") or ".partial-" in path.name]
    assert left == []
    assert not list(disk.glob("b/ranks-*")) or where == "report"
    (disk / "filler").unlink()
    assert train_on(disk, home, "--resume") == 0
    lines = (disk / "b/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["epoch", "epoch", "test", "end"]


def test_clean(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cleaning needs room for a manifest. Without any it says so and removes nothing; an older checkpoint gives it."""
    assert train_on(disk, home, "--set", "train.keep_optimizer=true") == 0
    checkpoints = disk / "b/checkpoints"
    older = checkpoints / "step-000000001"
    shutil.copytree(sorted(checkpoints.glob("step-*"))[-1], older)
    with small_disk(disk / "aside") as aside:
        shutil.move(older, aside)
        fill(disk, 0)
        before = sorted(disk.rglob("*"))
        capsys.readouterr()
        assert main(["clean", "b", "--runs-dir", str(disk), "--yes"]) == 2
        err = capsys.readouterr().err
        assert f"b was not cleaned: the disk of {checkpoints}/step-" in err
        assert "is full: more is needed than there is, 0.0 MB are free; make room" in err
        assert sorted(disk.rglob("*")) == before
        (disk / "filler").unlink()
        shutil.move(aside / older.name, older)
    (disk / "aside").rmdir()
    fill(disk, 0)
    assert main(["clean", "b", "--runs-dir", str(disk), "--yes"]) == 0
    assert not [*checkpoints.rglob("optimizer*")]
    assert not older.exists()


def test_serve(home: Path, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(disk))
    (port,) = free_ports(1)
    fill(disk, 0)
    assert main(["serve", "--model", str(home / "model"), "--port", str(port)]) == 2
    told = f"the disk of {disk} has 0.0 MB left, and Ray needs 50 MB there; make room, or name another folder by"
    assert told in capsys.readouterr().err
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_inspect(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = title(tmp_path / "features", named(3))
    fill(disk, 0)
    assert_refused(capsys, disk, "inspect", "--features", features, "--item", "i1", "--out", str(disk / "page.html"))


@pytest.mark.parametrize("command", ["compare", "settings"])
def test_a_table_into_a_file(home: Path, disk: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """`mealrec compare a >table.txt`; and a text that is longer than the buffer of an output."""
    fill(disk, 0)
    output = (disk / "table.txt").open("w")
    arguments = {"compare": ["a", "--runs-dir", str(home / "runs")], "settings": ["--all", "--format", "markdown"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert main([command, *arguments[command]]) == 2
    (disk / "filler").unlink()
    output.close()  # its buffer has a place now
    assert f"error: the disk of {disk} is full: more is needed" in capsys.readouterr().err


def test_track(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "runs/a", disk / "a")
    fill(disk, 0)
    command = ["track", "--run", "a", "--runs-dir", str(disk), "--uri", f"sqlite:///{disk}/mlflow.db"]
    assert main([*command, "--timeout", "60"]) == 2
    assert f"error: the disk of {disk}/a is full: more is needed" in capsys.readouterr().err


def test_register(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    run = ["--run", "a", "--runs-dir", str(home / "runs"), "--as", "videos"]
    assert main(["register", *run, "--uri", f"sqlite:///{disk}/mlflow.db"]) == 2
    assert f"error: the disk of {disk} is full: more is needed" in capsys.readouterr().err
    assert sorted(path.name for path in disk.iterdir()) == [".mlflow.db.lock", "filler"]


def test_analyse(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    run = ["--run", "a", "--runs-dir", str(home / "runs"), "--sample", "20"]
    assert_refused(capsys, disk, "analyse", *run, "--out", str(disk / "out"))


def test_a_disk_that_fails(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input/output error at the flush, which a disk that breaks gives; nothing is left of the file."""

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        command = ["evaluate", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(tmp_path / "report.json")]
        assert main(command) == 2
    assert f"the disk of {tmp_path} does not work (input/output error)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_may_only_be_read(home: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert main(["export", "--run", "a", "--runs-dir", str(home / "runs"), "--out", str(disk / "out")]) == 2
    assert "is on a disk that may only be read; choose another place" in capsys.readouterr().err
