"""The tables of a comparison, with cells as text, for the formats that people read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval.metrics.significance import PairedTest, SeedTest
from trainer.comparison.differences import STAR_P, OverSeeds, OverUsers
from trainer.comparison.figures import Beside, Comparison, Cost, Figure, Ranking

GAIN = "Rel. Imp."
STAR = f"*: better than each other system, with p < {STAR_P} against each (paired t-test over users)"
P_VALUES = (
    "Over users: would other users show the difference, with the models as they were trained? Over seeds: would models "
    "that are trained again? Holm: p corrected for all tests of its kind in the table"
)
_INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Table:
    """rows: the first one is the header. left: number of left-aligned columns. note: explains what is in it."""

    title: str
    rows: list[list[str]]
    left: int
    note: str = ""


def tables(comparison: Comparison, most: int | None = None) -> Iterator[Table]:
    """most: metrics in one table; further ones are in tables of their own (default: all in one)."""
    keys = comparison.keys
    for ranking in comparison.rankings.values():
        for start in range(0, len(keys), most or len(keys)):
            yield _metrics(ranking, keys[start : start + (most or len(keys))])
        yield from difference_tables(ranking)
    yield _costs(comparison.costs)
    yield from map(published_table, comparison.published)


def difference_tables(ranking: Ranking) -> Iterator[Table]:
    """The tests and the effect sizes, as far as there are any."""
    what = f"{ranking.title}: {ranking.reference} minus each other run"
    if over_users := ranking.differences.over_users:
        ranks = ranking.differences.signed_ranks
        fewer = "" if ranks == len(over_users) else f", of Wilcoxon {ranks}"
        yield _over_users(f"Tests over users, {what} ({_holm(over_users)}{fewer})", over_users)
        yield _effects(f"Effect sizes over users, {what}", over_users)
    if over_seeds := ranking.differences.over_seeds:
        yield _over_seeds(f"Tests over seeds, {what} ({_holm(over_seeds)})", over_seeds)


def _metrics(ranking: Ranking, keys: tuple[str, ...]) -> Table:
    rows = [["run", "seeds", "targets", "users", *keys]]
    for row in ranking.rows:
        name = [row.system, row.seeds] if row.targets == "all" else ["", ""]
        starred = ranking.differences.starred if (row.system, row.targets) == (ranking.reference, "all") else ()
        # where one figure of a column has an asterisk, a space keeps the digits of the others below each other
        marks = {key: " " if key in ranking.differences.starred else "" for key in keys} | dict.fromkeys(starred, "*")
        figures = [_figure(row.figures[key], marks[key]) for key in keys]
        rows.append([*name, row.targets, f"{row.users:,}", *figures])
    if ranking.gains:
        rows.append([GAIN, "", "all", "", *gain_cells(ranking, keys)])
    note = STAR if any(key in ranking.differences.starred for key in keys) else ""
    return Table(f"Test metrics, {ranking.title}", rows, 3, note)


def gain_cells(ranking: Ranking, keys: Sequence[str]) -> list[str]:
    """How far the reference is from the best other system in each metric, in %."""
    return [_percent(ranking.gains[key].relative, 2) for key in keys]


def _over_users(title: str, differences: Sequence[OverUsers]) -> Table:
    rows = [["against", "metric", "difference", _INTERVAL, "p (t)", "Holm", "p (Wilcoxon)", "Holm"]]
    for each in differences:
        p = (each.t.p, each.t_holm, each.signed_rank.p if each.signed_rank else None, each.signed_rank_holm)
        rows.append([each.against, each.metric, *_difference(each.t), *map(_p, p)])
    return Table(title, rows, 2, P_VALUES)


def _holm(differences: Sequence[object]) -> str:
    return f"Holm: {len(differences)} test{'s' if len(differences) > 1 else ''}"


def _effects(title: str, differences: Sequence[OverUsers]) -> Table:
    rows = [["against", "metric", "relative", _INTERVAL, "d_z", _INTERVAL]]
    for each in differences:
        relative, d_z = each.effects.relative, each.effects.d_z
        shown = [_percent(value, 1) for value in (relative.value, relative.low, relative.high)]
        plain = [_signed(value, 3) for value in (d_z.value, d_z.low, d_z.high)]
        rows.append([each.against, each.metric, shown[0], _between(*shown[1:]), plain[0], _between(*plain[1:])])
    return Table(title, rows, 2)


def _over_seeds(title: str, differences: Sequence[OverSeeds]) -> Table:
    header = ["against", "metric", "over", "difference", _INTERVAL, "t (Welch)", "p", "Holm"]
    rows = [
        [each.against, each.metric, each.sample, *_difference(test := each.welch), f"{test.t:.2f}", _p(test.p),
         _p(each.holm)]
        for each in differences
    ]  # fmt: skip
    return Table(title, [header, *rows], 3, P_VALUES)


def _costs(costs: Sequence[Cost]) -> Table:
    rows = [["run", "seeds", "best epoch", "s/epoch", "s/validation", "peak MiB"]]
    for each in costs:
        formats = (
            (each.best_epoch, ".0f"), (each.epoch_seconds, ".2f"), (each.valid_seconds, ".2f"), (each.peak_mib, ",.0f")
        )  # fmt: skip
        shown = ["-" if value is None else format(value, form) for value, form in formats]
        rows.append([each.system, str(each.runs), *shown])
    return Table("Cost, medians over epochs and runs", rows, 1)


#: quantities of the paper's Table 3: heading, and format
_COST_HEADINGS = {
    "train_seconds": ("s/epoch", ".2f"),
    "evaluation_seconds": ("s/validation", ".2f"),
    "memory_mb": ("MB", ",.0f"),
}


def published_table(each: Beside) -> Table:
    """A table of the paper beside ours."""
    formats = [_COST_HEADINGS.get(metric, (metric, ".4f")) for metric in each.metrics]
    rows = [["paper", "run", *(cell for heading, _ in formats for cell in (heading, "ours"))]]
    for line in each.lines:
        cells = []
        for metric, (_, form) in zip(each.metrics, formats, strict=True):
            ours = line.ours.get(metric)
            cells += [format(line.theirs[metric], form), "-" if ours is None else format(ours, form)]
        rows.append([line.printed, line.run or "-", *cells])
    return Table(each.title, rows, 2)


def _figure(figure: Figure, mark: str) -> str:
    if figure.mean is None:
        return f"-{mark}"
    return f"{figure.mean:.4f}{mark}" + ("" if figure.spread is None else f" ±{figure.spread:.4f}")


def _difference(test: PairedTest | SeedTest) -> list[str]:
    return [_signed(test.mean_difference, 4), _between(_signed(test.low, 4), _signed(test.high, 4))]


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}"


def _percent(value: float | None, digits: int) -> str:
    shown = _signed(None if value is None else 100 * value, digits)
    return shown if shown == "-" else f"{shown} %"


def _between(low: str, high: str) -> str:
    return f"{low} .. {high}"
