"""The formats of a comparison hold the same figures, and names of runs break none of them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.finished_runs import hits, write_run
from trainer.cli import main

NAME = "x_1 & 50%|$#{~^}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        write_run(folder / f"a-s{seed}", seed=seed, rank=hits(2 + seed))
    write_run(folder / NAME, "tedrec", rank=hits(2))
    write_run(folder / "[b", "popularity", rank=hits(8), cold=[False] * 8)
    for name, system, ranks in (("a", "sasrec", hits(8)), ("b", "tedrec", hits(0))):
        write_run(folder / "warm" / name, system, rank=ranks, cold=[False] * 8)
    return folder


def printed(runs: Path, capsys: pytest.CaptureFixture[str], form: str, *names: str) -> tuple[str, str]:
    assert main(["compare", *names, "--runs-dir", str(runs), "--format", form, "--ks", "10"]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_json_and_csv_hold_the_same_unrounded_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, told = printed(runs, capsys, "json", "a", NAME)
    content = json.loads(text)
    assert "mealrec train" in told, "advice is not part of the data"
    assert [system["name"] for system in content["systems"]] == ["a", NAME]
    assert [run["seed"] for run in content["systems"][0]["runs"]] == [1, 2]
    first = content["metrics"]["all"][0]
    assert first["figures"]["HR@10"] == {"mean": 3.5 / 8, "spread": pytest.approx(0.5**0.5 / 8)}
    found = content["differences"]["all"]
    test = found["over_users"][1]
    assert (found["reference"], test["against"], test["metric"]) == ("a", NAME, "HR@10")
    assert (test["difference"], test["relative"]["value"]) == (1.5 / 8, pytest.approx(0.75))
    assert test["Wilcoxon"] is None, "two seeds and one"
    assert test["paired t"]["tests"] == 2
    assert found["gains"]["HR@10"] == {"against": NAME, "relative": pytest.approx(0.75)}

    text, told = printed(runs, capsys, "csv", "a", NAME)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert "the mean over seeds of a-s1 (seed 1), a-s2 (seed 2)" in told
    (row,) = [
        row for row in rows
        if (row["table"], row["ranking"], row["run"], row["targets"], row["metric"])
        == ("metric", "all", "a", "all", "HR@10")
    ]  # fmt: skip
    assert (float(row["value"]), row["seeds"]) == (3.5 / 8, "2")
    assert float(row["spread"]) == first["figures"]["HR@10"]["spread"]
    compared = [row for row in rows if row["table"] != "metric" and row["ranking"] == "all"]
    assert [(row["table"], row["metric"], row["method"]) for row in compared] == [
        ("gain", "HR@10", ""), ("gain", "NDCG@10", ""),
        ("test", "NDCG@10", "paired t"), ("effect", "NDCG@10", "relative"), ("effect", "NDCG@10", "d_z"),
        ("test", "HR@10", "paired t"), ("effect", "HR@10", "relative"), ("effect", "HR@10", "d_z"),
    ]  # fmt: skip
    assert {(row["run"], row["against"]) for row in compared} == {("a", NAME)}
    assert float(compared[5]["value"]) == 1.5 / 8
    for row, name in ((compared[5], "paired t"), (compared[6], "relative"), (compared[7], "d_z")):
        for key, value in test[name].items():
            assert row[key] == ("" if value is None else str(value))


def test_every_format_has_the_asterisk_and_the_signed_ranks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "warm"
    content = json.loads(printed(folder, capsys, "json")[0])
    found = content["differences"]["all"]
    assert found["starred"] == ["HR@10", "NDCG@10"]
    assert found["over_users"][0]["Wilcoxon"] == {
        "statistic": 0, "users_that_differ": 8, "p": 2 / 2**8, "p_holm": 4 / 2**8, "tests": 2
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(printed(folder, capsys, "csv")[0])))
    starred = {(row["ranking"], row["run"], row["targets"], row["metric"]) for row in rows if row["star"]}
    assert starred == {("all", "a", "all", "HR@10"), ("all", "a", "all", "NDCG@10")}, "masked, both are equal"
    ranks = [row for row in rows if row["method"] == "Wilcoxon" and row["ranking"] == "all"]
    assert [(row["p"], row["users_that_differ"]) for row in ranks] == [("0.0078125", "8")] * 2
    assert "| a | one | all | 8 | 1.0000\\* | 1.0000\\* |" in printed(folder, capsys, "markdown")[0]
    latex = printed(folder, capsys, "latex")[0]
    assert r"a & one & all & 8 & 1.0000{*} & 1.0000{*} \\" in latex
    assert latex.count(r"\caption{Test metrics, every item ranked. {*}: better than each other system") == 1


def test_what_is_unknown_or_infinite_is_null(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(printed(runs / "warm", capsys, "json")[0])
    cold = [row for row in content["metrics"]["all"] if row["targets"] == "cold"]
    assert [row["figures"]["HR@10"]["mean"] for row in cold] == [None, None]
    found = content["differences"]["all"]
    hits_of_all = next(each for each in found["over_users"] if each["metric"] == "HR@10")
    assert hits_of_all["difference"] == 1
    assert hits_of_all["paired t"]["statistic"] is None, "the same for every user, so t is infinite"
    assert hits_of_all["relative"] == hits_of_all["d_z"] == {"value": None, "low": None, "high": None}
    assert found["gains"]["HR@10"] == {"against": "b", "relative": None}, "the other one has 0"
    assert content["costs"][0]["epoch_seconds"] is None


def test_markdown_has_tables_of_equal_width(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = printed(runs, capsys, "markdown", "a", NAME)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    assert r"| x\_1 & 50%\|$#{~^} | one | all | 8 | 0.2500 |" in text


def test_latex_has_no_bare_special_character_and_rows_of_equal_width(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = printed(runs, capsys, "latex", "a", NAME)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 7
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\n\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        for row in rows:
            assert row.endswith(r" \\")
            cells = re.split(r"(?<!\\)&", row.removesuffix(r"\\"))
            assert len(cells) == len(columns)
            for cell in cells:
                plain = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\$[+-]\$|\$\\pm\$|\{\[\}|\{\*\}", "", cell)
                assert not re.search(r"[\\&%$#_{}~^*]", plain), cell
    assert r"x\_1 \& 50\%\textbar{}\$\#\{\textasciitilde{}\textasciicircum{}\} & one" in text
    assert r"\providecommand{\toprule}{\hline}" in text, "without booktabs it compiles too"
    assert "{[}b & any" in printed(runs, capsys, "latex", "[b")[0]


def test_latex_splits_and_scales_what_is_wider_than_the_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "a", NAME, "--runs-dir", str(runs), "--format", "latex", "--ks", "1,2,3,4,5"]
    assert main([*command, "--metrics", "HR"]) == 0
    text = capsys.readouterr().out
    tables = re.findall(r"\\caption\{Test metrics.*?\n\n", text, re.DOTALL)
    shown = [re.findall(r"HR@\d", table) for table in tables]
    assert shown == [["HR@1", "HR@2", "HR@3", "HR@4"], ["HR@5"]] * 2
    scaled = r"\resizebox{\linewidth}{!}{\begin{tabular}"
    assert [scaled in table for table in tables] == [True, False] * 2
    assert text.count(scaled) == text.count("\\end{tabular}}")
    assert r"\providecommand{\resizebox}[3]{#3}" in text, "without graphicx it compiles too"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here; the structure is tested above")
@pytest.mark.parametrize("package", ["", r"\usepackage{graphicx}"])
def test_latex_compiles(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], package: str) -> None:
    tables = printed(runs, capsys, "latex", "a", NAME)[0] + printed(runs / "warm", capsys, "latex")[0]
    text = f"\\documentclass{{article}}\n{package}\n\\begin{{document}}\n{tables}\n\\end{{document}}\n"
    (tmp_path / "all.tex").write_text(text)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout[-2000:]
