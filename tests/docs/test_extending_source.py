"""The source in docs/extending.md, taken from the page: register it, run it, and read its dataset."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.pages import section
from tests.helpers.paths import ROOT
from trainer.cli import main
from trainer.data.format.dataset import Dataset
from trainer.data.sources.registry import SOURCES

PAGE = section("A source")
(SOURCE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[str]:
    """The name under which the page's line registers the page's class."""
    path = tmp_path / "events.py"
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("events", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ((name, class_name),) = re.findall(r'^        "(\w+)": (\w+)\(\),$', PAGE, flags=re.MULTILINE)
    SOURCES.register(name, getattr(module, class_name)())
    yield name
    SOURCES.unregister(name)


def log(folder: Path, *lines: object) -> str:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def event(who: str, what: str, at: int) -> dict[str, object]:
    return {"who": who, "what": what, "at": at, "name": f"Title of {what}"}


def test_the_example_is_short() -> None:
    assert len(SOURCE.splitlines()) < 40


def test_files_on_the_page_exist() -> None:
    for path in re.findall(r"`((?:trainer|tests|docs)/[\w/.-]+\.(?:py|md))`", PAGE):
        assert (ROOT / path).exists() or path == "trainer/data/sources/events.py", path


def test_the_example_prepares_a_dataset(events: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [event("ann", what, at) for at, what in enumerate("cabd")]
    path = log(tmp_path, *lines[::-1], lines[0], event("bob", "a", 7))
    out = tmp_path / "out"
    assert main(["prepare", events, "--events", path, "--core-on", "none", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "dropped: 1 duplicate rows" in printed
    assert "dropped: 1 users with fewer than 3 interactions" in printed
    dataset = Dataset.open(out)
    names = dataset.item_ids()
    assert dataset.user_ids() == ["ann"]
    assert [names[row - 1] for row in dataset.items] == list("cabd")
    assert dataset.item_titles() == [f"Title of {name}" for name in names]
    assert list(dataset.manifest.provenance.sources) == ["log.jsonl"]


def test_its_help_and_its_messages_are_like_those_of_the_others(
    events: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--help"]) == 0
    assert "mealrec prepare events --events log.jsonl" in capsys.readouterr().out
    arguments = ["prepare", events, "--out", str(tmp_path / "out"), "--events"]
    assert main([*arguments, log(tmp_path, event("ann", "a", 1), {"who": "ann", "at": 2})]) == 2
    assert "log.jsonl, line 2: item is missing" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text("who,what\nann,a\n")
    assert main([*arguments, str(tmp_path / "log.jsonl")]) == 2
    assert "write one object a line" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "absent.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err
