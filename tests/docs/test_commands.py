"""Each command in the documentation is accepted: there is such a verb or script, and it has these options.

Of trainings the settings are checked, too; and a command in a sentence, such as `mealrec clean --yes`, may be
incomplete, but what it says has to exist.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES
from tests.helpers.paths import ROOT
from trainer.cli import VERBS, parser_of
from trainer.commands.train_plan import COMPARISON
from trainer.config import recipe

#: of the examples that docs/extending.md adds
ADDED = {"events", "sq", "recent", "RBP"}
#: what a name in a sentence stands for
PLACEHOLDERS = {"VERB", "COMMAND"}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def lines(page: Path) -> Iterator[list[str]]:
    """The words of each command in the blocks of a page, without its comment."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if re.match(r"\s*(mealrec|ray|python|\S+/python) ", line) and "..." not in line and "$" not in line:
                yield shlex.split(line, comments=True)


def of_mealrec(words: list[str]) -> list[str] | None:
    """The verb and arguments of a command that is one of `mealrec`, however it is started."""
    if words[0] in ("ray", "python") and "--" in words:  # a job
        words = words[words.index("--") + 1 :]
    if words[0] == "mealrec":
        return words[1:]
    if words[:2] == ["python", "trainer/run.py"]:
        return ["train", *words[2:]]
    return words[3:] if words[:3] == ["python", "-m", "trainer.cli"] else None


@pages
def test_commands_are_accepted(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in lines(page):
        found = of_mealrec(words)
        if found is None or ADDED & {*found}:
            continue
        verb, *arguments = found
        assert verb in VERBS, words
        try:
            args = parser_of(verb).parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: {shlex.join(words)}: {capsys.readouterr().err}")
        if verb == "train":
            check_settings(args)


def check_settings(args: argparse.Namespace) -> None:
    """Raises UserError for a recipe, system or setting that is not there."""
    named = (args.model or "").split(",") if args.model else COMPARISON
    if not args.recipe.endswith(".yaml"):
        for system in named:
            recipe.load(args.recipe, system, args.settings, "data")


@pages
def test_scripts_have_the_options_that_pages_give_them(page: Path) -> None:
    for words in lines(page):
        script = next((word for word in words if word.endswith(".py")), "")
        if script.startswith("benchmarks/"):
            source = (ROOT / script).read_text(encoding="utf-8")
            for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
                assert f'"{option}"' in source, shlex.join(words)


@pages
def test_commands_in_sentences_name_what_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"`mealrec\s([^`]*)`", text):
        verb, *words = command.replace("...", "").split() or ["VERB"]
        if verb in PLACEHOLDERS or ADDED & {*words}:
            continue
        assert verb in VERBS, command
        known = set(parser_of(verb)._option_string_actions)
        for action in parser_of(verb)._actions:
            for sub in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
                known |= {*sub._option_string_actions}
        assert {word for word in words if re.match(r"--[a-z]", word)} <= known, command
