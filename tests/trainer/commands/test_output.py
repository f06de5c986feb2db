"""--quiet, --brief and --verbose: every command has them, and a training obeys them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny_runs import RUN, make_dataset
from trainer import cli

SETTINGS = [part for setting in (*RUN, "train.epochs=1") for part in ("--set", setting)]


def parsers(verb: str) -> Iterator[argparse.ArgumentParser]:
    """The parsers that read the options of a command: its own, or those of its subcommands."""
    parser = cli.parser_of(verb)
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from (below[0].values() if below else [parser])


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_command_takes_them_and_not_two_at_once(verb: str) -> None:
    for parser in parsers(verb):
        names = {name for action in parser._actions for name in action.option_strings}
        assert {"-q", "--quiet", "-v", "--verbose"} <= names
        assert ("--brief" in names) == (verb == "train")
        exclusive = [{action.dest for action in group._group_actions} for group in parser._mutually_exclusive_groups]
        assert {"verbosity"} in exclusive


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("output") / "data")


def train(data: Path, runs: Path, *options: str) -> int:
    return cli.main(["train", "--recipe", "demo", "--model", "popularity,sasrec", "--name", "two", "--data", str(data),
                     "--runs-dir", str(runs), *SETTINGS, *options])  # fmt: skip


CLOSING = r"\nKeep two-\w+: .*\nnext:\n.*  mealrec compare two-.*"
TABLES = r"\ntest metrics, full ranking[^,]*, history not masked\nrun .*\n-+\n(two-\w+ .*\n){2}\ntest metrics, .*"


def test_a_quiet_training_prints_its_table_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "runs", "--quiet") == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(TABLES, out, re.DOTALL), out
    assert err == ""
    assert cli.main(["export", "-q", "--run", str(tmp_path / "runs/two-sasrec"), "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["index", "-q", "--model", str(tmp_path / "out"), "--kind", "flat"]) == 0
    assert capsys.readouterr() == ("", ""), "the result is a folder"


def test_a_brief_training_prints_one_line_a_run_and_its_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "runs", "--brief") == 0
    out, err = capsys.readouterr()
    figures = r"validation NDCG@10 0\.\d{4}"
    lines = [
        rf"two-popularity: {figures} \(fitted\), \d+ s",
        rf"two-sasrec: {figures} \(best epoch 1 of 1\), \d+ s",
    ]
    assert re.fullmatch("\n".join(lines) + "\n" + TABLES + CLOSING, out, re.DOTALL), out
    assert err == ""


def test_a_verbose_training_adds_times_and_memory(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "runs", "--verbose") == 0
    out, err = capsys.readouterr()
    assert re.search(r"^epoch 1/1 .*\n  training .* s, validation .* s, checkpoint .* s$", out, re.MULTILINE), out
    assert re.search(r"^train: .* s of CPU time, at most [\d,]+ MiB$", err, re.MULTILINE), err
