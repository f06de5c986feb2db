"""`mealrec systems` and `mealrec settings`: what they print, and the pages of the documentation that are made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from models.systems import SYSTEMS
from tests.helpers.paths import ROOT
from trainer.cli import main
from trainer.commands import settings, systems
from trainer.commands.systems import EPOCH_SECONDS

#: rows of docs/results.md, by system, where the name is not enough
RESULTS = {"mealrec": "MealRec on TedRec, as published", "m3bsr": "M3BSR (single-behaviour)"}


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(command) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "page"), [("systems", systems.page), ("settings", settings.page)])
def test_the_pages_are_current(name: str, page: object) -> None:
    command = "mealrec settings --all" if name == "settings" else "mealrec systems"
    assert callable(page)
    current = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    assert current == page() + "\n", f"run: {command} --format markdown >docs/{name}.md"


def test_every_system_says_what_it_is_needs_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["system"]: row for row in json.loads(printed(capsys, "systems", "--format", "json"))}
    assert [*rows] == [*SYSTEMS]
    assert all(row["needs"] and len(row["what it is"]) > 20 for row in rows.values())
    kinds = {kind: [name for name in rows if rows[name]["kind"] == kind] for kind in ("baseline", "backbone")}
    assert kinds["baseline"] == ["popularity", "transition-knn", "tfidf-knn", "content-knn"]
    assert sorted(kinds["backbone"]) == ["cl4srec", "sasrec", "tedrec"]
    assert all((row["cost"] is None) == (row["kind"] == "baseline") for row in rows.values())
    assert re.search(r"\d{4}\)$", rows["tedrec"]["what it is"])
    assert rows["mealrec"]["needs"] == "frames, video vectors, title vectors"
    assert rows["tfidf-knn"]["needs"] == "titles"


def test_costs_are_those_of_the_results() -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    place = rows[0].index("s/epoch")
    measured = {row[0].lower(): row[place] for row in rows if len(row) == len(rows[0])}
    for name, seconds in EPOCH_SECONDS.items():
        assert float(measured[RESULTS.get(name, name).lower()]) == seconds, name


def test_text_fits_the_terminal_and_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = printed(capsys, "systems")
    assert max(map(len, text.splitlines())) <= 100
    assert {*re.findall(r"^[\w-]+", text, flags=re.MULTILINE)} >= {*SYSTEMS}
    monkeypatch.setenv("COLUMNS", "120")
    text = printed(capsys, "settings", "mealrec")
    assert re.search(r"^model\.tedrec\.ranking\.id_dropout +number +0\.0 +share of", text, flags=re.MULTILINE)


def test_settings_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "settings", "--format", "json"))
    batch = next(row for row in rows if row["key"] == "train.batch_size")
    assert (batch["type"], batch["default"]) == ("whole number, at least 1", 2048)
    assert "| `model.similarity` | dot or cosine | cosine |" in printed(
        capsys, "settings", "tedrec", "--format", "markdown"
    )
    assert [*json.loads(printed(capsys, "settings", "--all", "--format", "json"))][:2] == [
        "run", "transition-knn",
    ]  # fmt: skip
    assert printed(capsys, "settings", "popularity") == "popularity has no options.\n"


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "sasrek"]) == 2
    assert "did you mean 'sasrec'?" in capsys.readouterr().err
    assert main(["settings", "sasrec", "--all"]) == 2
    assert "leave sasrec out" in capsys.readouterr().err


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; from trainer import cli; cli.main(['systems']); cli.main(['settings', '--all']); "
        "print({'torch', 'ray', 'deepspeed', 'mlflow', 'polars'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("set()\n"), done.stdout[-300:] + done.stderr
