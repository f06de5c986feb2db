"""An analysis as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.analysis.record import Analysis, Case, Frames, Group, Grouping
from trainer.evaluation.report import text_table

_SHOWN_CASES, _WIDEST = 5, 28
#: less than this has no digit left in four places
_TINY = 5e-4


def as_text(analysis: Analysis) -> str:
    """Tables of groups, calibration, frames and cases, with a sentence each."""
    return "\n\n".join(_sections(analysis))


def _sections(analysis: Analysis) -> Iterator[str]:
    against = f", against {analysis.against}" if analysis.against else ""
    yield f"{analysis.run} ({analysis.system}) on the test set of {analysis.dataset}, every item ranked{against}"
    keys = analysis.keys[:2]
    for each in analysis.groupings:
        yield f"{each.title}\n{_groups(each, analysis.overall, keys, analysis.against)}"
    found = analysis.calibration
    rows = [["users", f"expected HR@{found.k}", f"HR@{found.k}"]]
    rows += [[f"{each.users:,}", f"{each.expected:.4f}", f"{each.hit_rate:.4f}"] for each in found.bins]
    yield (
        f"Calibration: the hit rate that scores promise, and the one observed (mean distance {found.error:.4f})\n"
        f"{text_table(rows, 0)}"
    )
    if analysis.frames:
        yield _frames(analysis.frames)
    if analysis.confident_misses:
        yield f"Missed, though the scores were sure\n{_cases(analysis.confident_misses)}"
    if analysis.lucky_hits:
        yield f"Hit, though the scores expected little\n{_cases(analysis.lucky_hits)}"
    if analysis.embedding:
        yield (
            f"A user is {analysis.embedding.distance:.3f} times as far from the own target as from those of others "
            f"({analysis.embedding.users:,} users)"
        )


def _groups(grouping: Grouping, overall: Group, keys: Sequence[str], against: str | None) -> str:
    other = [f"{against} {keys[0]}", "difference"] if against else []
    rows = [["", "users", "share", *(f"{key} ± 95 %" for key in keys), *other]]
    for each in (*grouping.groups, overall):
        compared = []
        if against:
            difference = each.metrics[keys[0]] - each.against[keys[0]]
            compared = [f"{each.against[keys[0]]:.4f}", f"{difference:+.4f}"]
        figures = [f"{each.metrics[key]:.4f} ±{each.interval[key]:.4f}" for key in keys]
        rows.append([each.label, f"{each.users:,}", f"{100 * each.share:.1f} %", *figures, *compared])
    return text_table(rows)


def _frames(frames: Frames) -> str:
    rows = [[frames.kind, *(str(place) for place in range(1, len(frames.influence) + 1))]]
    measures = [("change by TCD", frames.change), ("influence on the user vector", frames.influence)]
    rows += [[name, *map(_small, values)] for name, values in measures if values]
    text = f"{frames.kind.capitalize()} of the last item, mean over {frames.users:,} users\n{text_table(rows)}"
    for name, truth in frames.truth.items():
        text += (
            f"\n{name}: {_small(truth.on)} for {frames.kind} on topic, {_small(truth.off)} for filler; "
            f"larger on topic in {100 * truth.separation:.1f} % of the pairs of an item (by chance 50 %)"
        )
    return text


def _cases(cases: Sequence[Case]) -> str:
    rows = [["user", "last item", "target", "trained", "rank", "expected", "shown first"]]
    for each in cases[:_SHOWN_CASES]:
        rank = str(each.rank or "-")
        titles = [_cut(each.history[-1]), _cut(each.target)]
        rows.append([each.user, *titles, str(each.target_count), rank, f"{each.expected:.3f}", _cut(each.shown[0])])
    return text_table(rows, 3)


def _small(value: float) -> str:
    return f"{value:.4f}" if value == 0 or abs(value) >= _TINY else f"{value:.1e}"


def _cut(title: str) -> str:
    text = " ".join(title.split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
