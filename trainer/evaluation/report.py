"""Text tables of the metrics of runs. No column mixes masked and unmasked figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError
from retrieval.metrics.summary import best_possible
from trainer.data.synthetic.users import TARGET_SHARE
from trainer.evaluation.config import RECALL

#: below this recall an index changes metrics by more than the systems of a comparison usually differ
LOW_RECALL = 0.95


def read_report(path: Path) -> dict[str, Any]:
    """The content of a test.json or valid.json. Raises UserError, naming the file, if it is missing or damaged."""
    try:
        report = json.loads(path.read_bytes())
        if not isinstance(report, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; --resume of the run writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); --resume of the run writes it anew") from None
    return report


def text_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns with a rule under the header; the first `left` columns are left-aligned, the others right."""
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
    """A table of the metrics `keys` of runs, the best NDCG@10 first; "-" where a run has no such figure.

    reports: run -> content of test.json. Without NDCG@10 the first of `keys` decides. Runs that were ranked by an
    approximate index are marked, and then the heading says so too.

    For synthetic data a second table, with the history masked, ends with the best possible value. It only holds for
    rankings without the history, because users of a synthetic world do not repeat items.
    """
    reports = {f"{name}{approximate_mark([report])}": report for name, report in reports.items()}
    how = "approximate ranking" if any(map(_approximate, reports.values())) else "full ranking"
    text = f"\n{split} metrics, {how}, history not masked\n" + _table(_best_first(reports, keys), keys)
    truth = next((report["truth"] for report in reports.values() if report.get("truth")), None)
    if truth is None:
        return text
    masked = _best_first({name: report["masked"] for name, report in reports.items()}, keys)
    best = {"best possible": best_possible_figures(truth, keys)}
    return f"{text}\n\n{split} metrics, history masked\n" + _table({**masked, **best}, keys)


def approximate_mark(reports: Sequence[Mapping[str, Any]]) -> str:
    """What follows a name in tables if any of its reports (one per seed) is of an approximate index; else ""."""
    found = [report["index"][RECALL] for report in reports if _approximate(report)]
    return f" (approximate, {RECALL} {sum(found) / len(found):.4f})" if found else ""


def recall_warnings(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A warning for each run whose index finds too little of the exact lists. reports: run -> content of test.json."""
    return [
        f"{name} was ranked by {report['index']['kind']} with {RECALL} {report['index'][RECALL]:.4f}, below "
        f"{LOW_RECALL}: these are not the metrics of its model. An item that the index misses makes way for those "
        "behind it, so HR@10 can even be above that of exact ranking. For figures to report rank with eval.index=exact"
        for name, report in reports.items()
        if _approximate(report) and report["index"][RECALL] < LOW_RECALL
    ]


def how_ranked(index: Mapping[str, Any]) -> str:
    """What ranked, from the `index` of a report: why, its recall, and for how many users it found too few items."""
    why = f" (eval.index=auto: {index['why']})" if "why" in index else ""
    if index["kind"] == "exact":
        return f"ranked exactly{why}"
    said = f"ranked by {index['description']}{why}, {RECALL} against exact {index[RECALL]:.4f} "
    said += f"on {index['recall_users']:,} users"
    if index["short_users"]:
        said += f"; for {index['short_users']:,} users it found fewer items than eval.depth={index['depth']} asks for"
    return said


def _approximate(report: Mapping[str, Any]) -> bool:
    return bool(report.get("index", {}).get("approximate"))


def _best_first(metrics: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The same entries in descending order; entries without the figure, and equal ones, keep their order."""
    key = "NDCG@10" if "NDCG@10" in keys else keys[0]
    order = sorted(metrics, key=lambda name: -metrics[name].get(key, float("-inf")))
    return {name: metrics[name] for name in order}


def best_possible_figures(truth: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float | None]:
    """The best possible value of each key with the history masked, None if it is unknown; `truth` is of a report.

    Older datasets hold the values of four keys only.
    """
    shares = truth.get(TARGET_SHARE, [])
    return {key: truth[key] if key in truth else best_possible(key, shares) for key in keys}


def _table(metrics: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> str:
    figures = [[name, *(_figure(values.get(key)) for key in keys)] for name, values in metrics.items()]
    return text_table([["run", *keys], *figures])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
