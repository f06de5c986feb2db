"""A folder from somebody else may hold links in place of files that we write: what they lead to is never changed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cluster.failures import PreflightError
from cluster.ray_train import fit
from cluster.scaling import Workers
from models.errors import UserError
from retrieval.files import remove_own, whole_file
from tests.helpers.extraction_job import run as number_extraction
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main
from trainer.tracking import start_mirror

NUMBERS = [str(n) for n in range(9)]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder with files of the user, one with a name that an extraction would write."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in ("file", "items-00000.tar", "00000000.npz"):
        (folder / name).write_text("mine")
    return folder


def unchanged(precious: Path) -> bool:
    return {path.name: path.read_text() for path in precious.iterdir()} == dict.fromkeys(
        ("file", "items-00000.tar", "00000000.npz"), "mine"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("links") / "data")


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_training(data: Path, precious: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={setting}" for setting in [*MODELS["sasrec"], *RUN, "train.epochs=1"]]
    command = ["train", "--recipe", "demo", "--model", "sasrec", "--data", str(data), "--name", "a", "--runs-dir",
               str(tmp_path / "runs"), *settings]  # fmt: skip
    assert main(command) == 0
    run = tmp_path / "runs" / "a"
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious / "file")
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    assert f"{run / name} is a link to {precious / 'file'}" in capsys.readouterr().err
    assert unchanged(precious)
    if name == ".lock":
        assert main(["clean", "--runs-dir", str(tmp_path / "runs"), "--yes"]) == 0
        assert unchanged(precious)


def test_the_logs_of_the_mirror_and_of_workers(precious: Path, tmp_path: Path) -> None:
    run, told = tmp_path / "run", list[str]()
    run.mkdir()
    (run / "mlflow.log").symlink_to(precious / "file")
    start_mirror(run, f"sqlite:///{tmp_path / 'mlflow.db'}", "x", warn=told.append)
    assert len(told) == 1
    assert f"the MLflow mirror did not start: {run / 'mlflow.log'} is a link" in told[0]
    (run / "console.log").symlink_to(precious / "file")
    with pytest.raises(PreflightError, match=r"console\.log is a link"):
        fit(print, {}, Workers(1, gpus=False), name="run", storage=tmp_path)
    assert unchanged(precious)


@pytest.mark.parametrize("name", [".lock", "shards", "items.parquet", "unfinished", "unfinished/parts"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_extraction(precious: Path, tmp_path: Path, name: str, begun: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if begun:
        with pytest.raises(UserError, match="items have failed"):
            number_extraction(out, [*NUMBERS, "bad"], failures="0")
    if (out / name).is_dir():
        (out / name).rename(tmp_path / "aside")
    (out / name).unlink(missing_ok=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(precious if name not in (".lock", "items.parquet") else precious / "file")
    with pytest.raises(UserError, match=re.escape(f"{out / name} is a link to {precious}")):
        number_extraction(out, [*NUMBERS, "bad"], failures="1")
    assert unchanged(precious)


def test_temporary_files_and_folders_to_sweep(precious: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / ".page.html.0123abcd.tmp", tmp_path / ".page.html.0123abce.tmp"
    link.symlink_to(precious / "file")
    os.mkfifo(pipe)  # to open it would wait for ever
    with whole_file(tmp_path / "page.html") as new:
        new.write_text("a page")
    assert unchanged(precious)
    (tmp_path / "shards").symlink_to(precious)
    remove_own(tmp_path / "shards", r"items-\d{5,}\.tar")
    assert unchanged(precious)
