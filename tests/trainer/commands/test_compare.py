"""`mealrec compare` against figures computed by hand; its advice and examples; the requests that it refuses."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from models.errors import UserError
from tests.helpers.finished_runs import COLD, hits, write_run
from trainer.cli import main
from trainer.commands import compare, train
from trainer.commands.verbs import VERBS


def compared(runs_dir: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.run(parser.parse_args([*arguments, "--runs-dir", str(runs_dir)]))


def section(text: str, title: str) -> list[list[str]]:
    """Rows of the table below `title`, as words."""
    lines = text.split(title + "\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [line.split() for line in [lines[0], *lines[2:]]]


def test_tables_hold_the_figures_worked_out_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    assert compared(tmp_path, "a") == 0
    text = capsys.readouterr().out
    assert "8 test users; cold targets (not in any training row): 2 (25.0 %)" in text
    assert "Tests over" not in text
    assert "Rel. Imp." not in text
    header, everything, warm, cold = section(text, "Test metrics, every item ranked")
    assert header == ["run", "seeds", "targets", "users", "HR@10", "NDCG@10", "HR@20", "NDCG@20"]
    hit10 = [1, 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(11)]  # ranks 1, 2, 3, 10
    hit20 = [1 / math.log2(12), 1 / math.log2(21)]  # ranks 11 and 20, the latter cold
    ndcg10, ndcg20 = f"{sum(hit10) / 8:.4f}", f"{sum(hit10 + hit20) / 8:.4f}"
    assert everything == ["a", "one", "all", "8", "0.5000", ndcg10, "0.7500", ndcg20]
    assert warm[:4] == ["warm", "6", "0.6667", f"{sum(hit10) / 6:.4f}"]
    assert cold == ["cold", "2", "0.0000", "0.0000", "0.5000", f"{hit20[1] / 2:.4f}"]
    masked = section(text, "Test metrics, the user's own history masked")
    assert masked[1][:5] == ["a", "one", "all", "8", "0.6250"]  # ranks 1, 1, 5, 2, 9
    assert masked[3][:3] == ["cold", "2", "0.0000"]


def test_tests_pair_users_whatever_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    other = np.array([5, 0, 11, 0, 1, 0, 3, 12])
    shuffle = np.random.default_rng(0).permutation(8)
    mixed = {"user": np.arange(8), "target": np.arange(8) + 100, "rank": other, "cold": np.array(COLD)}
    mixed["rank_masked"] = np.array([1, 1, 5, 20, 21, 0, 2, 9])
    write_run(tmp_path / "b", "tedrec", **{name: array[shuffle] for name, array in mixed.items()})
    assert compared(tmp_path, "a", "b") == 0
    text = capsys.readouterr().out
    _, ndcg, hit = section(text, "Tests over users, every item ranked: a minus each other run (Holm: 2 tests)")
    hits_a, hits_b = np.array([1, 1, 0, 0, 0, 0, 1, 1]), np.array([1, 0, 0, 0, 1, 0, 1, 0])
    expected, ranks = stats.ttest_rel(hits_a, hits_b), stats.wilcoxon((hits_a - hits_b)[hits_a != hits_b])
    assert ndcg[:2] == ["b", "NDCG@10"]
    assert hit[:3] == ["b", "HR@10", "+0.1250"]
    low, high = expected.confidence_interval(0.95)
    assert hit[3:6] == [f"{low:+.4f}", "..", f"{high:+.4f}"]
    # of two tests, Holm doubles the smaller p, and leaves the larger one where it is not below that
    assert (hit[6], hit[8]) == (f"{expected.pvalue:.2g}", f"{ranks.pvalue:.2g}")
    for p, corrected in ((6, 7), (8, 9)):
        smaller, larger = sorted((float(row[p]), float(row[corrected])) for row in (ndcg, hit))
        assert smaller[1] == pytest.approx(min(1, 2 * smaller[0]), rel=0.05)
        assert larger[1] == max(larger[0], smaller[1])
    effect = section(text, "Effect sizes over users, every item ranked: a minus each other run")[2]
    d_z = (hits_a - hits_b).mean() / (hits_a - hits_b).std(ddof=1)
    assert [effect[place] for place in (0, 1, 2, 9)] == ["b", "HR@10", "+33.3", f"{d_z:+.3f}"]
    # masked ranks are equal in both runs, and have their own tests
    masked = "the user's own history masked: a minus each other run"
    for row in section(text, f"Tests over users, {masked} (Holm: 2 tests)")[1:]:
        assert row[2:] == ["+0.0000", "+0.0000", "..", "+0.0000", "1", "1", "1", "1"]
    for row in section(text, f"Effect sizes over users, {masked}")[1:]:
        assert row[2:] == ["+0.0", "%", "+0.0", "%", "..", "+0.0", "%", "+0.000", "+0.000", "..", "+0.000"]


def test_the_asterisk_is_for_what_beats_every_other_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """a finds 8 users more than b at 10 (p .004), and as many at 20."""

    def run(name: str, system: str, found: int, last: int) -> None:
        ranks = np.where(np.arange(60) < found, 1, np.where(np.arange(60) < last, 15, 50))
        users = {"user": np.arange(60), "target": np.arange(60), "cold": np.zeros(60, bool)}
        write_run(tmp_path / name, system, rank=ranks, rank_masked=ranks, **users)

    run("a", "sasrec", 30, 40)
    run("b", "tedrec", 22, 40)
    run("c", "cl4srec", 10, 20)
    compared(tmp_path, "a", "b", "c")
    text = capsys.readouterr().out
    rows = section(text, "Test metrics, every item ranked")
    assert rows[1][4:] == ["0.5000*", "0.5000*", "0.6667", f"{0.5 + 10 / 60 / 4:.4f}*"]
    assert "*" not in "".join(cell for row in rows[2:] for cell in row)
    assert rows[-1] == ["Rel.", "Imp.", "all", "+36.36", "%", "+36.36", "%", "+0.00", "%", *rows[-1][-2:]]
    assert "*: better than each other system, with p < 0.01 against each (paired t-test over users)\n" in text
    assert "Rel. Imp.: of a, relative to the best other system in each metric\n" in text
    compared(tmp_path, "b", "a", "c")
    text = capsys.readouterr().out
    rows = section(text, "Test metrics, every item ranked")
    assert not [cell for row in rows for cell in row if "*" in cell], "b is below a"
    assert rows[-1][3] == "-26.67"
    assert "*:" not in text


def test_other_metrics_are_computed_from_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=2, rank=np.array([1] * 8))
    write_run(tmp_path / "c", "tedrec", rank=np.array([2] * 8))
    assert compared(tmp_path, "a", "c", "--metrics", "MRR,NDCG", "--ks", "3,1") == 0
    text = capsys.readouterr().out
    header, _, _, _, everything, *_ = section(text, "Test metrics, every item ranked")
    assert header[4:] == ["MRR@3", "NDCG@3", "MRR@1", "NDCG@1"]
    assert everything == ["a", "one", "all", "8", f"{(1 + 1 / 2 + 1 / 3) / 8:.4f}",
                          f"{(1.5 + 1 / math.log2(3)) / 8:.4f}", "0.1250", "0.1250"]  # fmt: skip
    tests = section(text, "Tests over users, every item ranked: a minus each other run (Holm: 2 tests)")[1:]
    assert [row[:2] for row in tests] == [["c", "NDCG@3"], ["c", "MRR@3"]]


def test_what_the_runs_were_evaluated_with_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", "sasrec", "eval.ks=[1,5]", "eval.metrics=[MRR,Coverage]", report={"Coverage@5": 0.5})
    write_run(tmp_path / "b", "tedrec", "eval.ks=[3]", "eval.metrics=[HR]")
    compared(tmp_path)
    assert section(capsys.readouterr().out, "Test metrics, every item ranked")[0][4:] == [
        "MRR@1", "HR@1", "MRR@3", "HR@3", "MRR@5", "HR@5"
    ]  # fmt: skip


def test_the_best_system_comes_first_in_each_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, system, found, masked in (("a", "sasrec", 1, 3), ("b", "tedrec", 3, 1), ("c", "popularity", 2, 2)):
        truth = {"HR@1": 0.75, "share_at_rank": []}
        write_run(tmp_path / name, system, rank=hits(found), rank_masked=hits(masked), report={"truth": truth})
    compared(tmp_path, "--ks", "1")
    text = capsys.readouterr().out
    assert [row[0] for row in section(text, "Test metrics, every item ranked")[1::3]] == ["b", "c", "a", "Rel."]
    masked = section(text, "Test metrics, the user's own history masked")
    assert [row[0] for row in masked[1::3]] == ["a", "c", "b", "best"]
    assert masked[-2][-2:] == ["0.7500", "-"]
    assert masked[-1][-4:] == ["-66.67", "%", "-66.67", "%"], "b beside a, not beside what is possible"
    assert "Tests over users, every item ranked: b minus" in text, "no run is named first, so the best one"
    compared(tmp_path, "c", "a", "b")
    assert "Tests over users, every item ranked: c minus" in capsys.readouterr().out


def test_p_says_what_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, found in ((1, 4), (2, 5), (3, 6)):
        write_run(tmp_path / f"a-s{seed}", seed=seed, rank=hits(found))
    for seed, found in ((1, 1), (2, 2)):
        write_run(tmp_path / f"b-s{seed}", "tedrec", seed=seed, rank=hits(found))
    write_run(tmp_path / "c", "cl4srec", rank=hits(1))
    write_run(tmp_path / "d", "popularity", rank=hits(0))
    compared(tmp_path, "a", "b", "c", "d", "--ks", "10", "--metrics", "HR")
    text = capsys.readouterr().out
    users = section(text, "Tests over users, every item ranked: a minus each other run (Holm: 3 tests, of Wilcoxon 0)")
    assert [row[0] for row in users[1:]] == ["b", "c", "d"]
    assert {row[-1] for row in users[1:]} == {"-"}, "means over different numbers of seeds"
    assert "no Wilcoxon between means over different numbers of seeds" in text
    rows = section(text, "Tests over seeds, every item ranked: a minus each other run (Holm: 2 tests)")[1:]
    assert [" ".join(row[2:-7]) for row in rows] == ["3 seeds and 2 seeds", "3 seeds and any seed"]
    expected = stats.ttest_ind([4 / 8, 5 / 8, 6 / 8], [1 / 8, 2 / 8], equal_var=False)
    assert rows[0][-3:-1] == [f"{expected.statistic:.2f}", f"{expected.pvalue:.2g}"]
    exact = stats.ttest_1samp([4 / 8, 5 / 8, 6 / 8], 0)
    assert rows[1][-3:-1] == [f"{exact.statistic:.2f}", f"{exact.pvalue:.2g}"]
    smaller, larger = sorted((expected.pvalue, exact.pvalue))
    assert {row[-1] for row in rows} == {f"{2 * smaller:.2g}", f"{max(larger, 2 * smaller):.2g}"}
    figures = section(text, "Test metrics, every item ranked")[1::3]
    assert [row[:2] for row in figures] == [["a", "3"], ["b", "2"], ["c", "one"], ["d", "any"], ["Rel.", "Imp."]]
    assert figures[0][4:] == ["0.6250", "±0.1250"]
    assert "one seed, so the spread over seeds is unknown: c\n" in text


def test_seeds_of_another_configuration_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a-s1", seed=1, rank=hits(2))
    write_run(tmp_path / "a-s2", "sasrec", "model.hidden=128", seed=2, rank=hits(6))
    compared(tmp_path, "a", "--ks", "10", "--metrics", "HR")
    text = capsys.readouterr().out
    assert "a-s2 is not joined with a-s1, in spite of the name: model.hidden: 128 instead of 64" in text
    rows = section(text, "Test metrics, every item ranked")[1::3]
    assert rows[:2] == [["a-s2", "one", "all", "8", "0.7500"], ["a-s1", "one", "all", "8", "0.2500"]]


def test_one_test_user_leaves_the_tests_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"user": [0], "target": [7], "rank": [1], "rank_masked": [1], "cold": [False]}
    write_run(tmp_path / "a", **one)
    write_run(tmp_path / "b", "tedrec", **(one | {"rank": [3]}))
    assert compared(tmp_path, "a", "b") == 0
    text = capsys.readouterr().out
    assert text.startswith("1 test user; ")
    assert "no test over users: there is one test user" in text
    assert "Tests over users" not in text
    assert section(text, "Test metrics, every item ranked")[1][:5] == ["a", "one", "all", "1", "1.0000"]


def test_cost_is_read_from_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, seconds in ((1, (2.0, 4.0)), (2, (6.0,))):
        folder = write_run(tmp_path / f"a-s{seed}", seed=seed, report={"epoch": 10 * seed})
        lines = [{"event": "epoch", "metrics": {"train_seconds": s, "valid_seconds": s / 8}} for s in seconds]
        lines.append({"event": "end", "metrics": {"peak_memory_mib": 1000.0 * seed}})
        text = "".join(json.dumps({"epoch": 1, "step": 1, "time": 0, **line}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    compared(tmp_path, "a-s1", "a-s2")
    assert section(capsys.readouterr().out, "Cost, medians over epochs and runs")[1] == [
        "a", "2", "15", "4.00", "0.50", "1,500"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "HR,NDGC"], "unknown metric 'NDGC': did you mean 'NDCG'"),
        (["--metrics", "HR,Coverage"], "Coverage cannot be computed from saved ranks .*mealrec evaluate"),
        (["--ks", "ten"], "--ks ten: write whole numbers"),
        (["--ks", "5,5"], "ks: name at least one, and each once"),
    ],
)
def test_a_metric_that_cannot_be_compared_is_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(UserError, match=says):
        compared(tmp_path, "a", *arguments)


def test_ranks_of_an_index_are_told_and_end_at_its_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = {"index": {"kind": "ivf", "depth": 100, "recall@20": 0.73, "approximate": True}}
    write_run(tmp_path / "a", "sasrec", "eval.index=ivf", report=index)
    compared(tmp_path, "a", "--ks", "100")
    printed = capsys.readouterr()
    assert printed.out.count("a (approximate, recall@20 0.7300)") >= 3, "in each table"
    assert "warning: a was ranked by ivf with recall@20 0.7300, below 0.95" in printed.err
    with pytest.raises(UserError, match=r"a was ranked by an index that returned 100 items.*--ks 100 or less"):
        compared(tmp_path, "a", "--ks", "10,101")


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("  mealrec ")]


def test_advice_names_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A system with one seed is to be trained with two more; one system alone is to be compared with baselines."""
    write_run(tmp_path / "b c-s1", seed=1)
    write_run(tmp_path / "b c-s2", "sasrec", "model.hidden=8", seed=9)  # this name is taken
    compared(tmp_path, "b c-s1")
    seeds, again, baselines, with_them = commands(capsys.readouterr().err)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    asked = parser.parse_args(seeds[2:])
    assert (asked.recipe, asked.name, asked.seeds) == (f"{tmp_path}/b c-s1/config.yaml", "b c", "3,4")
    assert parser.parse_args(baselines[2:]).model == "popularity,transition-knn"
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    runs = [str(run) for run in parser.parse_args(again[2:]).runs]
    assert runs == ["b c-s1", f"{tmp_path}/b c-s3", f"{tmp_path}/b c-s4"]
    assert [run.name for run in parser.parse_args(with_them[2:]).runs[1:]] == ["b c-popularity", "b c-transition-knn"]
    for seed in (3, 4):
        write_run(tmp_path / f"b c-s{seed}", seed=seed)
    write_run(tmp_path / "b c-popularity", "popularity")
    assert main([*again[1:3], str(tmp_path / "b c-popularity"), *again[3:]]) == 0
    compared(tmp_path, "b c-s1", "b c-s3", "b c-popularity")
    assert commands(capsys.readouterr().err) == [], "nothing is left to advise"


def test_examples_work_after_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for system in ("popularity", "content-knn", "transition-knn", "sasrec", "tedrec", "mealrec"):
        write_run(Path("runs", f"demo-{system}"), system)
    assert main(["compare", "--help"]) == 0
    examples = commands(capsys.readouterr().out.partition("examples:")[2])
    assert len(examples) >= 3
    for words in examples:
        assert words[1] in VERBS
        assert main(words[1:]) == 0, words
        assert "demo-sasrec" in capsys.readouterr().out
