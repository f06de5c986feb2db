"""Tables for people: metrics of runs side by side, never mixing masked and unmasked figures in a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.metrics.base import METRIC_KEYS


def text_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns in line, a rule under the header; the first `left` columns to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def metric_table(reports: Mapping[str, Mapping[str, Any]], split: str = "test") -> str:
    """Metrics of runs by name (the content of test.json).

    Where the data's truth is known a second table, with the history masked, ends with the best possible: the world's
    users do not repeat items, so its bound is for rankings that leave the history out.
    """
    text = f"\n{split} metrics, full ranking, history not masked\n" + _table(reports)
    truth = next((report["truth"] for report in reports.values() if report.get("truth")), None)
    if truth is None:
        return text
    masked = {name: report["masked"] for name, report in reports.items()}
    return f"{text}\n\n{split} metrics, history masked\n" + _table({**masked, "best possible": truth})


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    figures = [[name, *(f"{values[key]:.4f}" for key in METRIC_KEYS)] for name, values in metrics.items()]
    return text_table([["run", *METRIC_KEYS], *figures])
