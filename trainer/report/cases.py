"""The tables of an analysis: single users, with titles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.analysis.record import Analysis, Case
from trainer.report.tables import Cell, Table


def analysis_tables(analysis: Analysis) -> Iterator[Table]:
    """Error cases, hits that were not to be expected, neighbours, and frames of single items."""
    k = analysis.calibration.k
    if analysis.confident_misses:
        title = f"Missed, though the scores were sure of a hit in the first {k}"
        yield _cases(title, analysis.confident_misses)
    if analysis.lucky_hits:
        yield _cases(f"Hit in the first {k}, though the scores expected none", analysis.lucky_hits)
    if analysis.neighbours:
        rows = [
            [
                Cell(each.user), Cell(_joined(each.history)), Cell(each.target),
                Cell("; ".join(f"{near.name} ({near.similarity:.2f})" for near in each.items)),
                Cell("; ".join(f"{near.name} ({near.similarity:.2f})" for near in each.users)),
            ]
            for each in analysis.neighbours
        ]  # fmt: skip
        header = ("user", "history", "target", "nearest items", "nearest users, by their last item")
        yield Table("Around the vectors of a few users", header, rows, 5, open=False)
    if analysis.frames and analysis.frames.examples:
        rows = [
            [Cell(each.title), Cell(_numbers(each.change)), Cell(_numbers(each.influence)), Cell(_marks(each.on_topic))]
            for each in analysis.frames.examples
        ]
        titles = ("last item", "change by TCD", "influence", "on topic (planted)")
        yield Table(f"{analysis.frames.kind.capitalize()} of single items", titles, rows, 4, open=False)


def _cases(title: str, cases: Sequence[Case]) -> Table:
    rows = [
        [
            Cell(each.user), Cell(_joined(each.history)), Cell(each.target), Cell(f"{each.target_count:,}"),
            Cell(f"{each.rank:,}" if each.rank else "not found"), Cell(f"{each.expected:.3f}"),
            Cell(_joined(each.shown)),
        ]
        for each in cases
    ]  # fmt: skip
    header = ("user", "history", "target", "its training count", "rank", "expected", "first of the list")
    return Table(title, header, rows, 7, open=False)


def _joined(titles: Sequence[str]) -> str:
    return " \N{MIDDLE DOT} ".join(titles)


def _numbers(values: Sequence[float]) -> str:
    return "  ".join(f"{value:.2g}" for value in values)


def _marks(flags: Sequence[bool]) -> str:
    return " ".join("yes" if flag else "no" for flag in flags)
