"""What `mealrec prepare` tells before the long work, and the command that comes next."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.options.base import ContentField
from trainer.cli import main
from trainer.commands import prepare as prepare_command
from trainer.commands import train
from trainer.commands.activation import activation
from trainer.commands.train_plan import COMPARISON, check_name, make_plan
from trainer.data.format.content import Content
from trainer.data.format.manifest import load_manifest
from trainer.data.kept import PrepareOptions
from trainer.data.prepare import history_length, prepare
from trainer.data.sources.base import Log


def test_the_command_that_comes_next_is_one_that_train_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    out = tmp_path / "my data"
    world = ["--users", "60", "--items", "80", "--topics", "4"]
    assert main(["prepare", "synthetic", *world, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    *_, line = [line for line in said.splitlines() if line.startswith("  ")]
    words = shlex.split(line)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(words[2:])
    assert (words[:2], args.data, args.name) == (["mealrec", "train"], str(out), "my data")
    assert [each.config.model.name for each in make_plan(args).runs] == [*COMPARISON]
    lines = said.splitlines()
    assert [f"  {command}" in lines for command in activation({})] == [True] * (sys.prefix != sys.base_prefix)


def test_data_without_training_rows_are_told_and_no_command_that_would_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "user,item,time\n" + "".join(f"u{u},{item},{at}\n" for u in range(4) for at, item in enumerate("abc"))
    )
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core-on", "none"]
    assert main(["prepare", "table", "--file", str(log), *columns, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path / 'out'} has no training rows" in said.err
    assert "next:" not in said.out


@pytest.mark.parametrize(("out", "name"), [(".hidden", "hidden"), ("-x", "x"), ("a b/c'd", "c'd"), ("...", "first")])
def test_a_folder_of_any_name_gives_a_command_that_the_shell_takes(out: str, name: str) -> None:
    words = shlex.split(prepare_command.next_command(Path(out)))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(words[2:])
    assert (Path(args.data), args.name) == (Path(out), name)
    check_name(args.name, Path("runs") / args.name, resume=False)


def test_a_core_that_drops_half_of_users_or_items_warns_before_the_long_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"u{u}", item, at) for u in range(8) for at, item in enumerate([*"abcd", f"x{u}"])]
    few = [(f"few{u}", item, at) for u in range(9) for at, item in enumerate("abc")]
    told: list[str] = []

    def encode(titles: object, scratch: Path) -> dict[ContentField, Content]:  # noqa: ARG001
        told.append(capsys.readouterr().err)
        return {}

    def prepared(name: str, rows: list[tuple[str, str, int]], options: PrepareOptions) -> None:
        frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row")
        prepare(Log(frame, ()), tmp_path / name, options, "", encode)

    prepared("items", rows, PrepareOptions())
    prepared("users", [row for row in rows + few if row[1] in "abcd"], PrepareOptions())
    prepared("all", rows, PrepareOptions(core_on="none"))
    assert "the 4-core on both keeps only 8 of 8 users and 4 of 12 items." in told[0]
    assert "\n  --k-core 4 --core-on users   keeps 8 users and 12 items" in told[0]
    assert "\n  --core-on none               keeps 8 users and 12 items" in told[0]
    assert "the 4-core on both keeps only 8 of 17 users and 4 of 4 items." in told[1]
    assert "\n  --k-core 3 --core-on both    keeps 17 users and 4 items" in told[1]
    assert "warning" not in told[2]


@pytest.mark.parametrize(
    ("lengths", "chosen"), [([3] * 9, 10), ([12] * 9, 20), ([5] * 95 + [400] * 5, 10), ([900], 50)]
)
def test_histories_are_as_long_as_nine_of_ten_users_need(lengths: list[int], chosen: int) -> None:
    assert history_length(np.array(lengths)) == chosen


def test_the_chosen_length_of_histories_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"u{u},i{at},{at}\n" for u in range(4) for at in range(15)))
    columns = ["--file", str(path), "--user", "user", "--item", "item", "--time", "time"]
    assert main(["prepare", "table", *columns, "--out", str(tmp_path / "out")]) == 0
    assert load_manifest(tmp_path / "out").max_length == 20
    assert f"{'history length':<16}{20:>14}\n" in capsys.readouterr().out
    assert main(["prepare", "table", *columns, "--max-length", "7", "--out", str(tmp_path / "seven")]) == 0
    assert load_manifest(tmp_path / "seven").max_length == 7


def test_times_that_are_all_one_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "days.csv"
    path.write_text("user,item,day\nu,a,0.1\nu,b,0.2\nu,c,0.3\n")
    columns = ["--file", str(path), "--user", "user", "--item", "item", "--time", "day", "--core-on", "none"]
    assert main(["prepare", "table", *columns, "--out", str(tmp_path / "out")]) == 0
    assert "days.csv: all times are fractions within one unit (0)" in capsys.readouterr().err
