"""`mealrec compare` against figures computed by hand, and the requests that it refuses."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from models.errors import UserError
from retrieval.metrics.summary import mean_metrics
from trainer.commands import compare

RANKS = [1, 2, 11, 20, 21, 0, 3, 10]
MASKED = [1, 1, 5, 20, 21, 0, 2, 9]
COLD = [False, False, False, True, False, True, False, False]


def write_run(folder: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {
        "user": np.arange(8),
        "target": np.arange(8) + 100,
        "rank": np.array(RANKS),
        "rank_masked": np.array(MASKED),
        "cold": np.array(COLD),
    }
    arrays |= changes
    folder.mkdir(parents=True)
    np.savez(folder / "ranks-test.npz", **{name: value for name, value in arrays.items() if value is not None})
    report = mean_metrics(arrays["rank"]) | {"masked": mean_metrics(arrays["rank_masked"])}
    (folder / "test.json").write_text(json.dumps(report))
    return folder


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
    assert "t-test" not in text
    header, everything, warm, cold = section(text, "Test metrics, every item ranked")
    assert header == ["run", "targets", "users", "HR@10", "NDCG@10", "HR@20", "NDCG@20"]
    hit10 = [1, 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(11)]  # ranks 1, 2, 3, 10
    hit20 = [1 / math.log2(12), 1 / math.log2(21)]  # ranks 11 and 20, the latter cold
    ndcg10, ndcg20 = f"{sum(hit10) / 8:.4f}", f"{sum(hit10 + hit20) / 8:.4f}"
    assert everything == ["a", "all", "8", "0.5000", ndcg10, "0.7500", ndcg20]
    assert warm[:4] == ["warm", "6", "0.6667", f"{sum(hit10) / 6:.4f}"]
    assert cold == ["cold", "2", "0.0000", "0.0000", "0.5000", f"{hit20[1] / 2:.4f}"]
    masked = section(text, "Test metrics, the user's own history masked")
    assert masked[1][:4] == ["a", "all", "8", "0.6250"]  # ranks 1, 1, 5, 2, 9
    assert masked[3][:3] == ["cold", "2", "0.0000"]


def test_t_tests_pair_users_whatever_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    other = np.array([5, 0, 11, 0, 1, 0, 3, 12])
    shuffle = np.random.default_rng(0).permutation(8)
    mixed = {"user": np.arange(8), "target": np.arange(8) + 100, "rank": other, "rank_masked": np.array(MASKED)}
    write_run(tmp_path / "b", **{name: array[shuffle] for name, array in mixed.items()}, cold=np.array(COLD)[shuffle])
    assert compared(tmp_path, "a", "b") == 0
    text = capsys.readouterr().out
    _, ndcg, hit = section(text, "Paired t-tests, every item ranked: a minus each other run")
    hits_a, hits_b = [1, 1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 0, 1, 0]
    expected = stats.ttest_rel(hits_a, hits_b)
    assert ndcg[:2] == ["b", "NDCG@10"]
    assert hit[:3] == ["b", "HR@10", "+0.1250"]
    assert hit[-3:] == [f"{expected.statistic:.2f}", f"{expected.pvalue:.2g}", "8"]
    # masked ranks are equal in both runs, and have their own test
    for row in section(text, "Paired t-tests, the user's own history masked: a minus each other run")[1:]:
        assert row[2] == "+0.0000"
        assert row[-3:] == ["0.00", "1", "8"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": np.arange(8) + 99}, "different test targets"),
        ({"user": np.arange(8) + 1}, "different test users"),
        ({"cold": ~np.array(COLD)}, r"different test training rows \(cold targets\)"),
        ({"rank": None}, "rank"),
        ({"cold": np.arange(8)}, "expected integers"),
        ({"target": np.arange(7)}, "of one length"),
        ({"user": np.zeros(8, int)}, "each user once"),
        ({"rank_masked": np.array([-1] * 8)}, "no rank below 0"),
        ({"user": np.array([object()] * 8)}, "cannot be read"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_run(tmp_path / "a")
    folder = write_run(tmp_path / "b")
    arrays = dict(np.load(folder / "ranks-test.npz")) | changes
    np.savez(folder / "ranks-test.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(UserError, match=message):
        compared(tmp_path, "a", "b")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no ranks": lambda run: (run / "ranks-test.npz").unlink(),
    "torn ranks": lambda run: cut(run / "ranks-test.npz"),
    "empty ranks": lambda run: (run / "ranks-test.npz").write_bytes(b""),
    "single array": lambda run: np.save((run / "ranks-test.npz").open("wb"), np.arange(3)),
    "pickle": lambda run: (run / "ranks-test.npz").write_bytes(b"\x80\x04K\x01."),
    "no report": lambda run: (run / "test.json").unlink(),
    "torn report": lambda run: cut(run / "test.json"),
    "list": lambda run: (run / "test.json").write_text("[1]"),
    "no HR": lambda run: (run / "test.json").write_text('{"NDCG@10": 0.1}'),
    "report of another test": lambda run: (run / "test.json").write_text(
        json.dumps(mean_metrics(np.array([*RANKS[:-1], 11])))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_run_that_was_not_tested_whole_is_refused_by_file(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    run = write_run(tmp_path / "a")
    damage(run)
    with pytest.raises(UserError, match=r"(ranks-test\.npz|test\.json).*mealrec evaluate --run a"):
        compared(tmp_path, "a")


def test_a_report_of_the_masked_metrics_fits_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "test.json").write_text(json.dumps(mean_metrics(np.array(MASKED))))
    assert compared(tmp_path, "a") == 0


@pytest.mark.parametrize(
    "report",
    [
        {"MRR@3": (1 + 1 / 2 + 1 / 3) / 8, "Coverage@3": 0.5, "OfAnother@3": 9.0},  # checked against the ranks
        {"Coverage@3": 0.5},  # this does not follow from ranks
    ],
)
def test_a_report_of_other_metrics_fits(tmp_path: Path, report: dict[str, float]) -> None:
    run = write_run(tmp_path / "a")
    (run / "test.json").write_text(json.dumps(report))
    assert compared(tmp_path, "a") == 0


def test_other_metrics_are_computed_from_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", rank=np.array([1] * 8))
    assert compared(tmp_path, "a", "b", "--metrics", "MRR,NDCG", "--ks", "3,1") == 0
    text = capsys.readouterr().out
    header, everything, *_ = section(text, "Test metrics, every item ranked")
    assert header[3:] == ["MRR@3", "NDCG@3", "MRR@1", "NDCG@1"]
    assert everything == ["a", "all", "8", f"{(1 + 1 / 2 + 1 / 3) / 8:.4f}", f"{(1.5 + 1 / math.log2(3)) / 8:.4f}",
                          "0.1250", "0.1250"]  # fmt: skip
    tests = section(text, "Paired t-tests, every item ranked: a minus each other run")[1:]
    assert [row[:2] for row in tests] == [["b", "NDCG@3"], ["b", "MRR@3"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "HR,NDGC"], "unknown metric 'NDGC': did you mean 'NDCG'"),
        (["--metrics", "HR,Coverage"], "Coverage cannot be computed from saved ranks.*mealrec evaluate"),
        (["--ks", "ten"], "--ks ten: write whole numbers"),
        (["--ks", "5,5"], "ks: name at least one, and each once"),
    ],
)
def test_a_metric_that_cannot_be_compared_is_refused(tmp_path: Path, arguments: list[str], says: str) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(UserError, match=says):
        compared(tmp_path, "a", *arguments)


def test_seeds_are_one_row_with_mean_and_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a-s1")
    write_run(tmp_path / "a-s2", rank=np.array([1, 2, 3, 20, 21, 0, 3, 10]))
    write_run(tmp_path / "b")
    compared(tmp_path, "a-s1", "b", "a-s2")
    text = capsys.readouterr().out
    rows = section(text, "Test metrics, every item ranked")
    assert [row[0] for row in rows] == ["run", "a", "warm", "cold", "b", "warm", "cold"]
    # HR@10 of the seeds: 4 of 8 users, and 5 of 8
    assert rows[1][:5] == ["a", "all", "8", "0.5625", "±0.0884"]
    difference = np.mean([[0, 0, 0.5, 0, 0, 0, 0, 0]])
    (tested,) = [row for row in section(text, "Paired t-tests, every item ranked: a minus each other run")
                 if row[:2] == ["b", "HR@10"]]  # fmt: skip
    assert float(tested[2]) == pytest.approx(difference, abs=1e-4)


def test_cost_is_read_from_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, seconds in ((1, (2.0, 4.0)), (2, (6.0,))):
        folder = write_run(tmp_path / f"a-s{seed}")
        report = json.loads((folder / "test.json").read_text())
        (folder / "test.json").write_text(json.dumps(report | {"epoch": 10 * seed}))
        lines = [{"event": "epoch", "metrics": {"train_seconds": s}} for s in seconds]
        lines.append({"event": "end", "metrics": {"peak_memory_mib": 1000.0 * seed}})
        text = "".join(json.dumps({"epoch": 1, "step": 1, "time": 0, **line}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    compared(tmp_path, "a-s1", "a-s2")
    assert section(capsys.readouterr().out, "Cost, medians over epochs and runs")[1] == [
        "a",
        "2",
        "15",
        "4.00",
        "1,500",
    ]


def test_a_run_that_an_approximate_index_ranked_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    path = write_run(tmp_path / "b") / "test.json"
    index = {"kind": "ivf", "approximate": True, "recall@20": 0.73}
    path.write_text(json.dumps({**json.loads(path.read_text()), "index": index}))
    assert compared(tmp_path, "a", "b") == 0
    printed = capsys.readouterr()
    assert printed.out.count("b (approximate, recall@20 0.7300)") >= 4, "in tables of metrics and of tests"
    assert "warning: b was ranked by ivf with recall@20 0.7300, below 0.95" in printed.err
