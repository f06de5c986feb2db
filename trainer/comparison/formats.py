"""A comparison as text, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from retrieval.metrics.effects import Effect
from retrieval.metrics.significance import PairedTest, SeedTest
from trainer.comparison.differences import Differences, OverUsers
from trainer.comparison.figures import Comparison, Ranking
from trainer.comparison.tables import Table, tables
from trainer.evaluation.report import text_table


def as_text(comparison: Comparison) -> str:
    """Aligned tables for a terminal."""
    notes = "".join(f"\n- {note}" for note in comparison.notes)
    blocks = (f"\n\n{table.title}\n{text_table(table.rows, table.left)}" for table in tables(comparison))
    return f"{comparison.head}{notes}{''.join(blocks)}"


def as_markdown(comparison: Comparison) -> str:
    """Tables with pipes, as GitHub shows them."""
    parts = [comparison.head]
    if comparison.notes:
        parts.append("\n".join(f"- {_escape_markdown(note)}" for note in comparison.notes))
    for table in tables(comparison):
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
    "*": "{*}",
}  # fmt: skip -- after the end of a row a bare bracket would begin its argument, and a bare asterisk change it


def as_latex(comparison: Comparison) -> str:
    """One table environment for each table, and the notes as comments."""
    parts = [_LATEX_HEAD, "\n".join(f"% {' '.join(line.split())}" for line in (comparison.head, *comparison.notes))]
    for table in tables(comparison, most=_LATEX_METRICS):
        header, *rows = (" & ".join(map(_escape_latex, row)) + r" \\" for row in table.rows)
        columns = "l" * table.left + "r" * (len(table.rows[0]) - table.left)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        body = "\n".join([*lines, r"\end{tabular}"])
        if _letters(table) > _LATEX_WIDTH:
            body = rf"\resizebox{{\linewidth}}{{!}}{{{body}}}"
        caption = f"{table.title}. {table.note}" if table.note else table.title
        parts.append(_LATEX_TABLE % (_escape_latex(caption), body))
    return "\n\n".join(parts)


def _letters(table: Table) -> float:
    columns = zip(*table.rows, strict=True)
    return sum(1.5 + max(map(len, column)) for column in columns)


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
    return re.sub(r"(?<!\S)([+-])(?=\d)", r"$\1$", escaped)  # signs, not hyphens


CSV_COLUMNS = ("table", "ranking", "run", "seeds", "targets", "users", "metric", "value", "spread", "star",
               "against", "sample", "method", "low", "high", "statistic", "p", "p_holm", "tests",
               "users_that_differ")  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """One line for each figure, of the kind that the column `table` says.

    metric: value, spread over seeds, and the asterisk. gain: value relative to the best other system, `against`.
    test: value is the difference, `method` the test, p_holm is corrected for `tests` of them. effect: `method` is its
    name. Table 2 or Table 3: the value that the paper printed; `against` is the run of the same system.
    """
    text = io.StringIO()
    seeds = {system.label: len(system.runs) for system in comparison.systems}
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, ranking in comparison.rankings.items():
        for row in ranking.rows:
            line = {"table": "metric", "ranking": name, "run": row.system, "targets": row.targets,
                    "seeds": seeds.get(row.system), "users": row.users}  # fmt: skip
            own = row.system == ranking.reference and row.targets == "all"
            for key, figure in row.figures.items():
                star = "*" if own and key in ranking.differences.starred else None
                writer.writerow({**line, "metric": key, "value": figure.mean, "spread": figure.spread, "star": star})
        for line in _compared_lines(ranking):
            writer.writerow({"ranking": name, "run": ranking.reference, "targets": "all", **line})
    for beside in comparison.published:
        for each in beside.lines:
            for metric, value in each.theirs.items():
                writer.writerow({"table": f"Table {beside.table}", "ranking": "all", "run": each.printed,
                                 "targets": "all", "metric": metric, "value": value, "against": each.run})  # fmt: skip
    return text.getvalue().rstrip("\n")


def _compared_lines(ranking: Ranking) -> Iterator[dict[str, Any]]:
    """Lines of gains, tests and effect sizes, without what they have in common."""
    for key, gain in ranking.gains.items():
        yield {"table": "gain", "metric": key, "against": gain.against, "value": gain.relative}
    plain = _plain_differences(ranking)
    for each in plain["over_users"] + plain["over_seeds"]:
        line = {key: each[key] for key in ("against", "metric", "sample")}
        for method in ("paired t", "Wilcoxon", "Welch's t"):
            if test := each.get(method):
                yield {**line, "table": "test", "method": method, "value": each["difference"], **test}
        for method in ("relative", "d_z"):
            if effect := each.get(method):
                yield {**line, "table": "effect", "method": method, **effect}


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
        "differences": {name: _plain_differences(ranking) for name, ranking in comparison.rankings.items()},
        "costs": [vars(each) for each in comparison.costs],
        "published": [{**vars(each), "lines": [vars(line) for line in each.lines]} for each in comparison.published],
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


def _plain_differences(ranking: Ranking) -> dict[str, Any]:
    found = ranking.differences
    return {
        "reference": ranking.reference,
        "starred": sorted(found.starred),
        "gains": {key: vars(gain) for key, gain in ranking.gains.items()},
        "over_users": [_plain_over_users(each, found) for each in found.over_users],
        "over_seeds": [
            {
                "against": each.against, "metric": each.metric, "sample": each.sample,
                "difference": each.welch.mean_difference,
                "Welch's t": _plain_t(each.welch, each.holm, len(found.over_seeds)),
            }
            for each in found.over_seeds
        ],
    }  # fmt: skip


def _plain_over_users(each: OverUsers, found: Differences) -> dict[str, Any]:
    ranks = each.signed_rank
    return {
        "against": each.against, "metric": each.metric, "sample": each.sample, "difference": each.t.mean_difference,
        "paired t": _plain_t(each.t, each.t_holm, len(found.over_users)),
        "Wilcoxon": ranks and {
            "statistic": ranks.statistic, "users_that_differ": ranks.differing, "p": ranks.p,
            "p_holm": each.signed_rank_holm, "tests": found.signed_ranks,
        },
        "relative": _plain_effect(each.effects.relative),
        "d_z": _plain_effect(each.effects.d_z),
    }  # fmt: skip


def _plain_t(test: PairedTest | SeedTest, corrected: float, tests: int) -> dict[str, Any]:
    limits = {"low": _finite(test.low), "high": _finite(test.high)}
    return {**limits, "statistic": _finite(test.t), "p": test.p, "p_holm": corrected, "tests": tests}


def _plain_effect(effect: Effect) -> dict[str, float | None]:
    return {key: _finite(value) for key, value in vars(effect).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text, "markdown": as_markdown, "csv": as_csv, "json": as_json, "latex": as_latex,
}  # fmt: skip
