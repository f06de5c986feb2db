"""The metrics in docs/extending.md, taken from the page: register them, train with them, find them in every report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.metrics.registry import METRICS
from tests.helpers.pages import example, load_example, section
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main
from trainer.data.synthetic.users import TARGET_SHARE

PAGE = section("A metric")
ASKED = ["eval.metrics=[HR,RBP,Evenness]", "eval.ks=[3,10]"]
KEYS = ["HR@3", "RBP@3", "Evenness@3", "HR@10", "RBP@10", "Evenness@10"]
RANK_KEYS = [key for key in KEYS if "Evenness" not in key]


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's Python block, registered with the page's lines."""
    module = load_example(PAGE, "attention", tmp_path_factory.mktemp("metric"))
    lines = re.findall(r'^        "(\w+)": (\w+)\(\),$', PAGE, flags=re.MULTILINE)
    assert [name for name, _ in lines] == ["RBP", "Evenness"]
    for name, cls in lines:
        METRICS.register(name, getattr(module, cls)())
    yield
    for name, _ in lines:
        METRICS.unregister(name)
    del sys.modules["attention"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and two SASRec runs: one with the metrics of the page, one without."""
    out = tmp_path_factory.mktemp("runs")
    make_dataset(out / "data")
    ask = ["train", "--recipe", "demo", "--model", "sasrec", "--runs-dir", str(out / "runs")]
    ask += ["--data", str(out / "data")]
    for name, more in (("with", ASKED), ("without", [])):
        settings = [part for setting in (*MODELS["sasrec"], *RUN, *more) for part in ("--set", setting)]
        assert main([*ask, "--name", name, *settings]) == 0
    return out


def rows(text: str, title: str) -> list[list[str]]:
    return [line.split() for line in text.split(title + "\n", 1)[1].split("\n\n", 1)[0].splitlines()]


def rbp(ranks: Any, k: int) -> float:
    return float(np.mean([0.2 * 0.8 ** (rank - 1) if 0 < rank <= k else 0 for rank in ranks]))


def test_the_example_is_short() -> None:
    assert len(example(PAGE).splitlines()) < 40


def test_the_run_reports_it(root: Path) -> None:
    run = root / "runs/with"
    test, ranks = json.loads((run / "test.json").read_text()), np.load(run / "ranks-test.npz", allow_pickle=False)
    assert [key for key in test if "@" in key] == list(test["masked"]) == KEYS
    assert test["RBP@3"] == pytest.approx(rbp(ranks["rank"], 3))
    assert test["masked"]["RBP@10"] == pytest.approx(rbp(ranks["rank_masked"], 10))
    assert test["cold"]["RBP@10"] == pytest.approx(rbp(ranks["rank"][ranks["cold"]], 10))
    assert 0 < test["Evenness@3"] <= test["Evenness@10"] <= 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [list(line["metrics"]["valid"]) for line in lines if line["event"] == "epoch"] == [RANK_KEYS] * 2
    assert [list(line["metrics"]) for line in lines if line["event"] == "test"] == [[*KEYS, "masked", "warm", "cold"]]


def test_what_is_reported_does_not_change_what_is_learned(root: Path) -> None:
    first, second = (np.load(root / f"runs/{name}/ranks-test.npz", allow_pickle=False) for name in ("with", "without"))
    assert np.array_equal(first["rank"], second["rank"])


def test_evaluate_and_compare_show_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["--runs-dir", str(root / "runs")]
    test = json.loads((root / "runs/with/test.json").read_text())
    assert main(["evaluate", "--run", "without", *runs, "--set", ASKED[0], "--set", ASKED[1]]) == 0
    figures = [f"{test[key]:.4f}" for key in KEYS]
    assert rows(capsys.readouterr().out, "history not masked")[::2] == [["run", *KEYS], ["without", *figures]]

    assert main(["compare", "with", "without", *runs, "--metrics", "RBP,HR", "--ks", "3"]) == 0
    printed = capsys.readouterr().out
    table = rows(printed, "Test metrics, every item ranked")
    assert table[0][-2:] == ["RBP@3", "HR@3"]
    assert table[2] == ["with", "one", "all", "80", f"{test['RBP@3']:.4f}", f"{test['HR@3']:.4f}"]
    tests = rows(printed, "Tests over users, every item ranked: with minus each other run (Holm: 2 tests)")
    assert [row[:2] for row in tests[2:]] == [["without", "RBP@3"], ["without", "HR@3"]]

    assert main(["compare", "with", *runs, "--metrics", "Evenness"]) == 2
    assert "cannot be computed from saved ranks" in capsys.readouterr().err


def test_the_table_at_the_end_tells_the_best_possible(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [part for setting in (*RUN, *ASKED) for part in ("--set", setting)]
    assert main(["train", "--recipe", "demo", "--model", "popularity", "--data", str(root / "data"), "--name", "floor",
                 "--runs-dir", str(root / "runs"), *settings]) == 0  # fmt: skip
    table = rows(capsys.readouterr().out, "test metrics, history masked")
    assert table[0] == ["run", *KEYS]
    shares = json.loads((root / "data/manifest.json").read_text())["truth"][TARGET_SHARE]
    best = sum(share * 0.2 * 0.8**place for place, share in enumerate(shares[:3]))
    assert table[-1][:2] == ["best", "possible"]
    assert table[-1][3:5] == [f"{best:.4f}", "-"]
