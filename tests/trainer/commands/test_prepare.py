"""What `mealrec prepare` tells before the long work, and the command that comes next."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import polars as pl
import pytest

from models.options.base import ContentField
from trainer.cli import main
from trainer.commands import train
from trainer.config import recipe
from trainer.data.format.writer import Content
from trainer.data.prepare import PrepareOptions, prepare
from trainer.data.sources.base import Log


def test_the_command_that_comes_next_is_one_that_train_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my data"
    world = ["--users", "60", "--items", "80", "--topics", "4"]
    assert main(["prepare", "synthetic", *world, "--out", str(out)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(words[2:])
    assert (words[:2], args.data, args.name) == (["mealrec", "train"], str(out), "my data")
    assert "mealrec" in args.model.split(",")
    for system in args.model.split(","):
        train._check(recipe.load(args.recipe, system, [], args.data))


def test_a_core_that_drops_half_of_the_items_warns_before_the_long_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"u{u}", item, at) for u in range(8) for at, item in enumerate([*"abcd", f"x{u}"])]
    log = Log(pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row"), ())
    told: list[str] = []

    def encode(titles: object, scratch: Path) -> dict[ContentField, Content]:  # noqa: ARG001
        told.append(capsys.readouterr().err)
        return {}

    prepare(log, tmp_path / "out", PrepareOptions(), "", encode)
    prepare(log, tmp_path / "all", PrepareOptions(core_on="none"), "", encode)
    assert told[0].startswith("warning: the 4-core on both drops 8 of 12 items; --k-core 3")
    assert "warning" not in told[1]


def test_times_that_are_all_one_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "days.csv"
    path.write_text("user,item,day\nu,a,0.1\nu,b,0.2\nu,c,0.3\n")
    columns = ["--file", str(path), "--user", "user", "--item", "item", "--time", "day", "--core-on", "none"]
    assert main(["prepare", "table", *columns, "--out", str(tmp_path / "out")]) == 0
    assert "days.csv: all times are fractions within one unit (0)" in capsys.readouterr().err
