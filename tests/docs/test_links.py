"""The documentation: its links have targets, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PAGES = [path for pattern in ("*.md", "docs/*.md", "benchmarks/*.md") for path in sorted(ROOT.glob(pattern))]
#: files that the reader makes when following the page
TO_BE_MADE = {
    "models/recent.py",
    "retrieval/metrics/attention.py",
    "retrieval/index/rounded.py",
    "trainer/data/sources/events.py",
    "benchmarks/results/DATE-HARDWARE.md",
    "benchmarks/results/DATE-HARDWARE-extraction.md",
}


def anchors(page: Path) -> set[str]:
    """The anchors that common hosts of Markdown give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:models|retrieval|cluster|trainer|tests|docs|benchmarks)/[\w/.-]+\.\w+)", text):
        assert (ROOT / path).exists() or path in TO_BE_MADE, f"{page.name} names {path}"


def test_readme_is_for_a_stranger() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    assert max(map(len, text.splitlines())) <= 120
