"""Tables for people: metrics of runs side by side, never mixing masked and unmasked figures in a column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError
from retrieval.metrics.summary import best_possible
from trainer.data.synthetic.users import TARGET_SHARE


def read_report(path: Path) -> dict[str, Any]:
    """The content of a test.json or valid.json. Raises UserError, naming the file, if it is missing or damaged."""
    try:
        report = json.loads(path.read_bytes())
        if not isinstance(report, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); --resume of the run writes it anew") from None
    return report


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


def metric_table(reports: Mapping[str, Mapping[str, Any]], keys: Sequence[str], split: str = "test") -> str:
    """Metrics of runs by name (the content of test.json), those of `keys`; "-" where a report has no such figure.

    Where the data's truth is known a second table, with the history masked, ends with the best possible: the world's
    users do not repeat items, so its bound is for rankings that leave the history out.
    """
    text = f"\n{split} metrics, full ranking, history not masked\n" + _table(reports, keys)
    truth = next((report["truth"] for report in reports.values() if report.get("truth")), None)
    if truth is None:
        return text
    masked = {name: report["masked"] for name, report in reports.items()}
    best = {"best possible": _best_possible(truth, keys)}
    return f"{text}\n\n{split} metrics, history masked\n" + _table({**masked, **best}, keys)


def _best_possible(truth: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float | None]:
    """The best possible value of each key, None where the truth does not tell. Older datasets hold four figures."""
    shares = truth.get(TARGET_SHARE, [])
    return {key: truth[key] if key in truth else best_possible(key, shares) for key in keys}


def _table(metrics: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> str:
    figures = [[name, *(_figure(values.get(key)) for key in keys)] for name, values in metrics.items()]
    return text_table([["run", *keys], *figures])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
