"""The kind of index in docs/extending.md, taken from the page: register it, build it, search it, evaluate with it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.index.kinds import KINDS
from tests.helpers.pages import example, load_example, section
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main

PAGE = section("A kind of index")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's kind of index, registered with the page's line, and a trained and exported SASRec."""
    out = tmp_path_factory.mktemp("index")
    module = load_example(PAGE, "rounded", out)
    ((name, cls),) = re.findall(r'^        "(\w+)": (\w+),$', PAGE, flags=re.MULTILINE)
    KINDS.register(name, getattr(module, cls))
    make_dataset(out / "data")
    settings = [part for setting in (*MODELS["sasrec"], *RUN) for part in ("--set", setting)]
    assert main(["train", "--recipe", "demo", "--model", "sasrec", "--data", str(out / "data"), "--name", "first",
                 "--runs-dir", str(out / "runs"), *settings]) == 0  # fmt: skip
    assert main(["export", "--run", str(out / "runs/first"), "--out", str(out / "export")]) == 0
    yield out
    KINDS.unregister(name)
    del sys.modules["rounded"]


def test_the_example_is_short() -> None:
    assert len(example(PAGE).splitlines()) < 40


def test_it_is_built_with_its_options_and_answers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(root / "export")
    capsys.readouterr()
    assert main(["index", "--model", model, "--kind", "sq", "--bits", "6", "--device", "cpu"]) == 0
    assert "sq bits=6 on cpu, 60 items" in capsys.readouterr().out
    assert json.loads((root / "export/index/sq/index.json").read_text())["parameters"] == {"bits": 6}
    answers = []
    for index in ("sq", "exact"):
        assert main(["recommend", "--model", model, "--history", "i1 i2", "--index", index, "--k", "20", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["ranked_by"].startswith("sq bits=6")
    found, exact = ({entry["item"] for entry in answer["recommendations"]} for answer in answers)
    assert len(found & exact) > 15


def test_it_is_described_and_refused_by_its_own_rules(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["index", "--help"]) == 0
    assert re.search(r"--bits VALUE\s+sq: bits of a\s+coordinate", capsys.readouterr().out)
    for options, says in (
        (["--bits", "5"], "index sq: bits is 5: it is 4, 6 or 8"),
        (["--nprobe", "5"], "sq has no option nprobe"),
    ):
        assert main(["index", "--model", str(root / "export"), "--kind", "sq", *options]) == 2
        assert says in capsys.readouterr().err


def test_a_run_is_evaluated_by_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "report.json"
    ask = ["evaluate", "--run", "first", "--runs-dir", str(root / "runs"), "--out", str(out)]
    assert main([*ask, "--set", "eval.index=sq"]) == 0
    assert "ranked by sq bits=8 on cpu" in capsys.readouterr().out
    report = json.loads(out.read_text())["index"]
    assert report["kind"] == "sq"
    assert 0.8 < report["recall@20"] <= 1
    assert main([*ask, "--set", "eval.index=sqs"]) == 2
    assert "unknown index: did you mean 'sq'" in capsys.readouterr().err
