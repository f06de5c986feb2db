"""The table at the end of a run: the chosen metrics, and "-" for unknown values."""

from __future__ import annotations

from trainer.data.synthetic.users import TARGET_SHARE
from trainer.evaluation.report import approximate_mark, metric_table, recall_warnings

FIGURES = {"HR@1": 0.25, "HR@3": 0.5, "Coverage@3": 0.75}
KEYS = ["HR@1", "HR@3", "Coverage@3", "MRR@200"]


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line]


def test_columns_are_the_keys_and_a_dash_is_what_is_not_there() -> None:
    reports = {"old": {**FIGURES, "masked": FIGURES}, "new": {**FIGURES, "MRR@200": 0.125, "masked": FIGURES}}
    _, header, _, old, new = rows(metric_table(reports, KEYS))
    assert header == ["run", *KEYS]
    assert old == ["old", "0.2500", "0.5000", "0.7500", "-"]
    assert new == ["new", "0.2500", "0.5000", "0.7500", "0.1250"]


def test_the_best_possible_is_told_as_far_as_the_truth_goes() -> None:
    truth = {"HR@1": 0.375, TARGET_SHARE: [0.375, 0.25, 0.125]}
    report = {**FIGURES, "masked": FIGURES, "truth": truth}
    table = rows(metric_table({"run": report}, KEYS, "validation"))
    assert table[4] == ["validation", "metrics,", "history", "masked"]
    assert table[-1] == ["best", "possible", "0.3750", "0.7500", "-", "-"]
    older = {**report, "truth": {"HR@1": 0.375}}  # a dataset that an earlier version made
    assert rows(metric_table({"run": older}, KEYS))[-1] == ["best", "possible", "0.3750", "-", "-", "-"]


def test_the_best_run_comes_first_in_each_table() -> None:
    figures = {"a": (0.1, 0.4), "b": (0.3, 0.2), "c": (0.2, 0.3)}
    reports = {
        name: {"HR@10": 0.5, "NDCG@10": plain, "masked": {"HR@10": 0.5, "NDCG@10": masked}, "truth": {"NDCG@10": 0.9}}
        for name, (plain, masked) in figures.items()
    }
    keys = ["HR@10", "NDCG@10"]
    table = rows(metric_table(reports, keys))
    assert [row[0] for row in table[3:6]] == ["b", "c", "a"]
    assert [row[0] for row in table[-4:]] == ["a", "c", "b", "best"]
    only = [{**FIGURES, "HR@1": value} for value in (0.1, 0.2)]
    assert [row[0] for row in rows(metric_table({"x": only[0], "y": only[1]}, KEYS))[-2:]] == ["y", "x"]


def ranked_by(kind: str, recall: float) -> dict[str, object]:
    index = {"kind": kind, "approximate": kind != "flat", "recall@20": recall}
    return {**FIGURES, "masked": FIGURES, "index": index}


def test_what_an_approximate_index_ranked_is_marked_and_low_recall_is_explained() -> None:
    reports = {"a": ranked_by("ivf", 0.73), "b": ranked_by("hnsw", 0.99), "c": ranked_by("flat", 1.0)}
    text = metric_table(reports, KEYS)
    assert text.startswith("\ntest metrics, approximate ranking, history not masked\n")
    assert "a (approximate, recall@20 0.7300)  0.2500" in text
    assert "b (approximate, recall@20 0.9900)  0.2500" in text
    assert "\nc  " in text
    assert "full ranking" in metric_table({"c": reports["c"]}, KEYS)
    (warning,) = recall_warnings(reports)
    assert "a was ranked by ivf with recall@20 0.7300, below 0.95" in warning
    assert "HR@10 can even be above that of exact ranking" in warning
    assert approximate_mark([reports["a"], reports["b"]]) == " (approximate, recall@20 0.8600)", "over seeds"
    assert approximate_mark([{}, reports["c"]]) == ""
