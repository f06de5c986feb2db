"""What `mealrec analyse` found of a run: groups of users, calibration, frames, and the t-SNE map (Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from trainer.analysis.record import Analysis, Calibration, Embedding, Frames, Grouping, Point
from trainer.report.figures.style import AROUND, BAR, COLOURS, ERROR, PageFigure, figure, panels, slug

_CHANGE = "Change: how far TCD moves it; what it keeps, it moves little. "
_INFLUENCE = "Influence: how much the user vector turns if it is replaced by the mean one."
_CROWD = "#9498a0"
_KINDS = {"user": ("preference", "circle"), "target": ("target", "star"), "frame": ("frame", "square")}


def analysis_figures(analysis: Analysis, name: str, commands: tuple[str, ...]) -> list[PageFigure]:
    """The figures of one analysis. name: of the trial, for the names of files."""
    made = [
        PageFigure(
            slug("analysis", name, each.name), each.title,
            f"{each.about} {_key(analysis)} with its 95 % interval; the dashed line is the mean of all users.",
            _groups(each, analysis), commands,
        )
        for each in analysis.groupings
    ]  # fmt: skip
    made.append(
        PageFigure(
            slug("analysis", name, "calibration"),
            "Calibration",
            "Users by the hit rate that their scores promise (softmax at temperature "
            f"{analysis.calibration.temperature:.3g}, fitted on validation), and their hit rate. On the diagonal, "
            f"scores promise what they keep; the mean distance is {analysis.calibration.error:.3f}.",
            _calibration(analysis.calibration),
            commands,
        )
    )
    if frames := analysis.frames:
        made.append(
            PageFigure(
                slug("analysis", name, "frames"),
                f"{frames.kind.capitalize()} of the last item",
                _CHANGE * bool(frames.change) + _INFLUENCE + _truth(frames),
                _frames(frames),
                commands,
            )
        )
    return made


def embedding_figure(analysis: Analysis, title: str, commands: tuple[str, ...]) -> list[PageFigure]:
    """The t-SNE map; none for systems without vectors."""
    if analysis.embedding is None:
        return []
    found = analysis.embedding
    caption = (
        f"t-SNE of {found.users:,} test users: preferences and the items they watched next; colours and numbers are "
        "those of a few users, with the frames of their last item as NPD reads them. Before t-SNE, a user is "
        f"{found.distance:.2f} times as far from the own target as from that of another user. Hover for titles."
    )
    return [PageFigure(slug("tsne", analysis.run), title, caption, _map(found), commands)]


def _key(analysis: Analysis) -> str:
    return analysis.keys[0]


def _groups(grouping: Grouping, analysis: Analysis) -> go.Figure:
    key = _key(analysis)
    labels = [each.label for each in grouping.groups]
    intervals = [each.interval[key] for each in grouping.groups]
    below = [min(each.interval[key], each.metrics[key]) for each in grouping.groups]  # no metric is below 0
    drawn = figure(AROUND + 26 + (BAR if analysis.against is None else 2 * BAR) * len(labels), bargap=0.3)
    drawn.add_bar(
        name=analysis.run, orientation="h", y=labels, x=[each.metrics[key] for each in grouping.groups],
        marker={"color": COLOURS[0]},
        error_x={"type": "data", "array": intervals, "arrayminus": below, "thickness": 1.5, "width": 3, "color": ERROR},
        customdata=[[each.users, 100 * each.share] for each in grouping.groups],
        hovertemplate=f"%{{y}}<br>{key} %{{x:.4f}}<br>%{{customdata[0]:,}} users (%{{customdata[1]:.1f}} %)"
        "<extra></extra>",
    )  # fmt: skip
    if analysis.against is not None:
        drawn.add_bar(
            name=analysis.against, orientation="h", y=labels, x=[each.against[key] for each in grouping.groups],
            marker={"color": _CROWD}, hovertemplate=f"%{{y}}<br>{key} %{{x:.4f}}<extra></extra>",
        )  # fmt: skip
    drawn.add_vline(x=analysis.overall.metrics[key], line={"dash": "dash", "width": 1.5, "color": _CROWD})
    drawn.update_xaxes(title_text=key, rangemode="tozero")
    drawn.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return drawn


def _calibration(calibration: Calibration) -> go.Figure:
    bins = calibration.bins
    top = max(max(each.expected, each.hit_rate) for each in bins) * 1.08 or 1.0
    drawn = figure(400)
    drawn.add_scatter(
        x=[0, top], y=[0, top], mode="lines", name="as promised", line={"dash": "dash", "color": _CROWD},
        hoverinfo="skip",
    )  # fmt: skip
    drawn.add_scatter(
        x=[each.expected for each in bins], y=[each.hit_rate for each in bins], mode="lines+markers", name="observed",
        line={"color": COLOURS[0], "width": 2}, marker={"size": 9}, customdata=[each.users for each in bins],
        hovertemplate="expected %{x:.3f}<br>observed %{y:.3f}<br>%{customdata:,} users<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title_text=f"expected HR@{calibration.k}", rangemode="tozero")
    drawn.update_yaxes(title_text=f"observed HR@{calibration.k}", rangemode="tozero")
    return drawn


def _frames(frames: Frames) -> go.Figure:
    every = {
        "change by TCD": (frames.change, COLOURS[1]),
        "influence on the user vector": (frames.influence, COLOURS[0]),
    }
    shown = {title: each for title, each in every.items() if each[0]}
    drawn = panels(list(shown), 40 + 190 * len(shown), 0.22)
    for row, (values, colour) in enumerate(shown.values(), 1):
        places = [str(place) for place in range(1, len(values) + 1)]
        drawn.add_bar(x=places, y=list(values), marker={"color": colour}, row=row, col=1,
                      hovertemplate=f"{frames.kind} %{{x}}: %{{y:.3g}}<extra></extra>")  # fmt: skip
    drawn.update_xaxes(type="category")
    drawn.update_xaxes(title_text=f"{frames.kind}, in the order of the video", row=len(shown), col=1)
    drawn.update_yaxes(exponentformat="e", nticks=5)
    return drawn


def _truth(frames: Frames) -> str:
    found = frames.truth.get("influence")
    if found is None:
        return ""
    return (
        f" This synthetic world knows which frames show the topic: of an item's frames, one on topic has the larger "
        f"influence than one of filler in {100 * found.separation:.0f} % of pairs (50 % by chance)."
    )


def _map(found: Embedding) -> go.Figure:
    drawn = figure(560, hoverdistance=12)
    crowd = [point for point in found.points if point.focus < 0]
    for kind, size in (("target", 5), ("user", 4)):
        drawn.add_trace(_points([each for each in crowd if each.kind == kind], kind, _CROWD, size, "others"))
    focused = [point for point in found.points if point.focus >= 0]
    for kind, size in (("frame", 9), ("user", 12), ("target", 14)):
        mine = [each for each in focused if each.kind == kind]
        if mine:
            colours = [COLOURS[each.focus % len(COLOURS)] for each in mine]
            drawn.add_trace(_points(mine, kind, colours, size, ""))
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False, scaleanchor="x")
    return drawn


def _points(points: Sequence[Point], kind: str, colour: str | list[str], size: int, of: str) -> go.Scatter:
    word, symbol = _KINDS[kind]
    named = [f"{word}{f' of user {each.focus + 1}' if each.focus >= 0 else ''}" for each in points]
    return go.Scatter(
        name=f"{word}s of others" if of else f"{word}s",
        mode="markers+text" if kind == "frame" else "markers",
        x=[each.x for each in points],
        y=[each.y for each in points],
        text=[str(each.frame) if kind == "frame" else "" for each in points],
        textposition="top right",
        textfont={"size": 9},
        marker={"symbol": symbol, "color": colour, "size": size, "opacity": 0.45 if of else 1.0},
        customdata=[[name, _cut(each.title)] for name, each in zip(named, points, strict=True)],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    )


def _cut(title: str) -> str:
    """A title without what Plotly would take for markup, and not longer than a line."""
    text = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text if len(text) <= 80 else text[:79] + "\N{HORIZONTAL ELLIPSIS}"
