"""Each `mealrec` command in the documentation is accepted: there is such a verb, and it has these options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES
from tests.helpers.paths import ROOT
from trainer.cli import VERBS, parser_of

#: of the examples that docs/extending.md adds
ADDED = {"events", "sq"}


def commands(page: Path) -> Iterator[str]:
    """The commands in the blocks of a page, each in one line, without its comment."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.strip().startswith("mealrec ") and "..." not in line and "$" not in line:
                yield line.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_accepted(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        _, verb, *arguments = shlex.split(command, comments=True)
        if ADDED & {*arguments}:
            continue
        assert verb in VERBS, command
        try:
            parser_of(verb).parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: {command}: {capsys.readouterr().err}")
