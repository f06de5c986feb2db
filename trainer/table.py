"""Tables for people: metrics of runs side by side, never mixing masked and unmasked figures in a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.metrics import METRIC_KEYS


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for first, *rest in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def metric_table(reports: Mapping[str, Mapping[str, Any]], split: str = "test") -> str:
    """Test metrics of runs by name (the content of test.json); the best possible where the data's truth is known."""
    rows = [[name, *(f"{report[key]:.4f}" for key in METRIC_KEYS)] for name, report in reports.items()]
    truth = next((report["truth"] for report in reports.values() if report.get("truth")), None)
    if truth:
        rows.append(["best possible", *(f"{truth[key]:.4f}" if key in truth else "-" for key in METRIC_KEYS)])
    return f"\n{split} metrics, full ranking, history not masked\n" + text_table(["run", *METRIC_KEYS], rows)
