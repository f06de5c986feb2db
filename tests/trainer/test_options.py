"""Options of all verbs: local paths are local, and what messages advise is there."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from trainer.cli import VERBS, main


def parsers(verb: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser of a verb, or those of its kinds, by name."""
    parser = argparse.ArgumentParser(prog=verb)
    importlib.import_module(f"trainer.commands.{verb}").add_arguments(parser)
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from kinds[0].choices.items() if kinds else [(verb, parser)]


ALL = {verb: dict(parsers(verb)) for verb in VERBS}


def options(verb: str, *without: str, common: bool = False) -> set[str]:
    """The options of a verb: of any of its kinds, or those that all kinds have in common."""
    sets = [{*parser._option_string_actions} for kind, parser in ALL[verb].items() if kind not in without]
    return set.intersection(*sets) if common else set.union(*sets)


def test_every_local_path_refuses_a_url() -> None:
    for verb, kinds in ALL.items():
        for parser in kinds.values():
            for action in parser._actions:
                assert action.type is not Path, f"{verb}: {action.dest} takes s3://a/b for a folder s3: of this machine"


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--run", "a", "--out", "gs://b/model"],
        ["prepare", "synthetic", "--out", "s3://b/data"],
        ["extract", "titles", "--titles", "t.csv", "--encoder", "glove", "--out", "s3://b/f"],
        ["index", "--model", "s3://b/model", "--kind", "flat"],
        ["evaluate", "--run", "a", "--out", "s3://b/r.json"],
        ["study", "--name", "a", "--plan", "tiny", "--runs-dir", "s3://b/runs"],
    ],
)
def test_object_storage_is_refused_where_a_local_path_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert re.search(r"(s3|gs):// URL, and a local path is needed", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


#: options that only some kinds of a verb have, and whose messages only these kinds show
OF_SOME_KINDS = {"--videos", "--segments"}


def messages() -> Iterator[tuple[str, str]]:
    """File and text of each message to a user: the strings within calls, and texts that several messages share."""
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        told: list[ast.AST] = [
            node for node in calls if ast.unparse(node.func) in ("UserError", "refuse_where", "print")
        ]
        shared = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        for node in [*told, *shared]:
            parts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            yield path.relative_to(ROOT).as_posix(), " ".join(part for part in parts if isinstance(part, str))


def reached(file: str) -> set[str] | None:
    """The options that a user has who sees the messages of a file; None where verbs differ."""
    verb = Path(file).stem
    if file.startswith("trainer/commands/") and verb in VERBS:
        return options(verb)
    if file.startswith(("trainer/data/sources/", "trainer/data/prepare", "trainer/data/provided", "trainer/data/sel")):
        return options("prepare", "synthetic", common=True)  # a generated world reads no log
    if file.startswith("trainer/extract/pipeline/"):
        return options("extract", common=True)
    return options("train") if file.startswith("trainer/training/") else None


def test_messages_name_only_options_that_the_user_has() -> None:
    checked = 0
    anywhere = set.union(*(options(verb) for verb in VERBS))
    for file, text in messages():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)) - OF_SOME_KINDS
        for verb in set(re.findall(r"mealrec (\w+)", text)) & {*VERBS}:
            named -= options(verb)
        known = reached(file)
        checked += len(named)
        assert named <= (anywhere if known is None else known), f"{file}: {text}"
    assert checked > 20
