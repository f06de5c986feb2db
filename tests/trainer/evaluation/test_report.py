"""The table at the end of a run: the chosen metrics, and "-" for unknown values."""

from __future__ import annotations

from trainer.data.synthetic.users import TARGET_SHARE
from trainer.evaluation.report import metric_table

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
