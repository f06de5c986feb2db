"""A comparison as text, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainer.comparison.figures import Cost, Figure, Ranking
from trainer.comparison.seeds import System
from trainer.evaluation.report import text_table


@dataclass(frozen=True)
class Comparison:
    """keys: of the metrics. rankings: by name, `all` and `masked`. notes: about seeds, tests and what is left out."""

    users: int
    cold: int
    keys: tuple[str, ...]
    systems: list[System]
    rankings: dict[str, Ranking]
    costs: list[Cost]
    notes: list[str]

    @property
    def head(self) -> str:
        """How many users there are, and how many have a cold target."""
        return (
            f"{self.users:,} test user{'s' if self.users > 1 else ''}; "
            f"cold targets (not in any training row): {self.cold:,} ({100 * self.cold / self.users:.1f} %)"
        )


@dataclass(frozen=True)
class _Table:
    """rows: the first one is the header. left: number of left-aligned columns."""

    title: str
    rows: list[list[str]]
    left: int


def _tables(comparison: Comparison, most: int | None = None) -> Iterator[_Table]:
    """most: metrics in one table; further ones are in tables of their own (default: all in one)."""
    keys = comparison.keys
    for ranking in comparison.rankings.values():
        for start in range(0, len(keys), most or len(keys)):
            yield _metrics_table(ranking, keys[start : start + (most or len(keys))])
        if ranking.tests:
            yield _tests_table(ranking)
    costs = [
        [each.system, str(each.runs), *_shown(each.best_epoch, each.epoch_seconds, each.peak_mib)]
        for each in comparison.costs
    ]
    yield _Table(
        "Cost, medians over epochs and runs", [["run", "seeds", "best epoch", "s/epoch", "peak MiB"], *costs], 1
    )


def _metrics_table(ranking: Ranking, keys: tuple[str, ...]) -> _Table:
    rows = [["run", "seeds", "targets", "users", *keys]]
    for row in ranking.rows:
        name = [row.system, row.seeds] if row.targets == "all" else ["", ""]
        rows.append([*name, row.targets, f"{row.users:,}", *(_figure(row.figures[key]) for key in keys)])
    return _Table(f"Test metrics, {ranking.title}", rows, 3)


def _tests_table(ranking: Ranking) -> _Table:
    rows = [["against", "metric", "p is over", "difference", "95 % interval", "t", "p"]]
    for test in ranking.tests:
        result = test.result
        interval = f"{result.low:+.4f} .. {result.high:+.4f}"
        figures = [f"{result.mean_difference:+.4f}", interval, f"{result.t:.2f}", f"{result.p:.2g}"]
        rows.append([test.against, test.metric, test.sample, *figures])
    return _Table(f"T-tests, {ranking.title}: {ranking.reference} minus each other run", rows, 3)


def _figure(figure: Figure) -> str:
    if figure.mean is None:
        return "-"
    return f"{figure.mean:.4f}" + ("" if figure.spread is None else f" ±{figure.spread:.4f}")


def _shown(epoch: float | None, seconds: float | None, peak: float | None) -> list[str]:
    formats = ((epoch, ".0f"), (seconds, ".2f"), (peak, ",.0f"))
    return ["-" if value is None else format(value, form) for value, form in formats]


def as_text(comparison: Comparison) -> str:
    """Aligned tables for a terminal."""
    notes = "".join(f"\n- {note}" for note in comparison.notes)
    tables = (f"\n\n{table.title}\n{text_table(table.rows, table.left)}" for table in _tables(comparison))
    return f"{comparison.head}{notes}{''.join(tables)}"


def as_markdown(comparison: Comparison) -> str:
    """Tables with pipes, as GitHub shows them."""
    parts = [comparison.head]
    if comparison.notes:
        parts.append("\n".join(f"- {_escape_markdown(note)}" for note in comparison.notes))
    for table in _tables(comparison):
        header, *rows = ([_escape_markdown(cell) for cell in row] for row in table.rows)
        rule = ["---" if place < table.left else "---:" for place in range(len(header))]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
        parts.append(f"### {_escape_markdown(table.title)}\n\n{lines}")
    return "\n\n".join(parts)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<\[\]])", r"\\\1", text)


_LATEX_HEAD = r"""% Needs no package. With \usepackage{booktabs} the rules are those of booktabs, else plain lines.
% With \usepackage{graphicx} tables that are wider than the text are scaled to fit it.
\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
\providecommand{\resizebox}[3]{#3}"""
_LATEX_TABLE = r"""\begin{table}
\centering\footnotesize\setlength{\tabcolsep}{3pt}
\caption{%s}
%s
\end{table}"""
#: the widest table that fits the text of LaTeX's article, in letters; each column counts as one and a half more
_LATEX_WIDTH = 78
_LATEX_METRICS = 4
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
}  # fmt: skip -- after the end of a row a bare bracket would begin its argument


def as_latex(comparison: Comparison) -> str:
    """One table environment for each table, and the notes as comments."""
    parts = [_LATEX_HEAD, "\n".join(f"% {' '.join(line.split())}" for line in (comparison.head, *comparison.notes))]
    for table in _tables(comparison, most=_LATEX_METRICS):
        header, *rows = (" & ".join(map(_escape_latex, row)) + r" \\" for row in table.rows)
        columns = "l" * table.left + "r" * (len(table.rows[0]) - table.left)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        body = "\n".join([*lines, r"\end{tabular}"])
        if _letters(table) > _LATEX_WIDTH:
            body = rf"\resizebox{{\linewidth}}{{!}}{{{body}}}"
        parts.append(_LATEX_TABLE % (_escape_latex(table.title), body))
    return "\n\n".join(parts)


def _letters(table: _Table) -> float:
    columns = zip(*table.rows, strict=True)
    return sum(1.5 + max(map(len, column)) for column in columns)


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
    return re.sub(r"(?<!\S)([+-])(?=\d)", r"$\1$", escaped)  # signs, not hyphens


CSV_COLUMNS = ("table", "ranking", "run", "seeds", "targets", "users", "metric", "value", "spread",
               "against", "over", "sample", "low", "high", "t", "p")  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """One line for each figure: `table` is `metric` (value, spread over seeds) or `test` (value is the difference)."""
    text = io.StringIO()
    seeds = {system.label: len(system.runs) for system in comparison.systems}
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, ranking in comparison.rankings.items():
        for row in ranking.rows:
            line = {"table": "metric", "ranking": name, "run": row.system, "targets": row.targets,
                    "seeds": seeds.get(row.system)}  # fmt: skip
            for key, figure in row.figures.items():
                values = {"users": row.users, "metric": key, "value": figure.mean, "spread": figure.spread}
                writer.writerow({**line, **values})
        for test in _plain_tests(ranking):
            test["value"] = test.pop("difference")
            writer.writerow({"table": "test", "ranking": name, "run": ranking.reference, "targets": "all", **test})
    return text.getvalue().rstrip("\n")


def as_json(comparison: Comparison) -> str:
    """Everything, unrounded; null where a figure is unknown or not finite."""
    content = {
        "users": comparison.users,
        "cold_users": comparison.cold,
        "notes": comparison.notes,
        "systems": [
            {
                "name": system.label, "system": system.name, "same_with_any_seed": system.is_fixed,
                "runs": [
                    {"name": run.name, "folder": str(run.folder), "seed": run.config.seed if run.config else None}
                    for run in system.runs
                ],
            }
            for system in comparison.systems
        ],
        "metrics": {name: _plain_rows(ranking) for name, ranking in comparison.rankings.items()},
        "tests": {
            name: {"reference": ranking.reference, "differences": _plain_tests(ranking)}
            for name, ranking in comparison.rankings.items()
        },
        "costs": [vars(each) for each in comparison.costs],
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)


def _plain_rows(ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "system": row.system, "targets": row.targets, "users": row.users,
            "figures": {key: vars(value) for key, value in row.figures.items()},
        }
        for row in ranking.rows
    ]  # fmt: skip


def _plain_tests(ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "against": test.against, "metric": test.metric, "over": test.over, "sample": test.sample,
            "difference": test.result.mean_difference,
            **{key: _finite(getattr(test.result, key)) for key in ("low", "high", "t", "p")},
        }
        for test in ranking.tests
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text, "markdown": as_markdown, "csv": as_csv, "json": as_json, "latex": as_latex,
}  # fmt: skip
