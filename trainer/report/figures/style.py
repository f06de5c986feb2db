"""How figures look: what all share, the light and the dark template, and one colour for each system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

#: distinct on white and on near-black (the categorical colours of Observable Plot)
COLOURS = ("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
#: height of one bar with its gap, and of what is around the bars, in pixels
BAR, AROUND = 22, 96
#: of deviations and intervals over bars, visible on light and on dark
ERROR = "#7d8590"


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page. name: of its files and its place in the page. caption: how to read it. commands: what
    makes it. wide: it takes the whole width of the page. least_width: narrower, it is scrolled; in pixels."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    commands: tuple[str, ...]
    wide: bool = False
    least_width: int = 0


def template(*, dark: bool) -> dict[str, Any]:
    """The colours of one colour scheme, as a template of Plotly."""
    text, grid, line, back = (
        ("#d7dae0", "#343a46", "#6b7280", "#1b1f27") if dark else ("#24292f", "#e4e7ec", "#8c959f", "#ffffff")
    )
    axis = {"gridcolor": grid, "linecolor": line, "zerolinecolor": line, "tickcolor": line}
    return {
        "layout": {
            "font": {"color": text},
            "paper_bgcolor": back,
            "plot_bgcolor": back,
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": back, "bordercolor": line, "font": {"color": text}},
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
        }
    }


def figure(height: int, base: go.Figure | None = None, **layout: Any) -> go.Figure:
    """An empty figure of our look, without colours of a scheme. base: one with subplots, to be given the look."""
    made = base if base is not None else go.Figure()
    made.update_layout(
        template=go.layout.Template(),
        height=height,
        font={"family": FONT, "size": 13},
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0, "xanchor": "left", "title": {"text": ""}},
        hovermode="closest",
        **layout,
    )
    made.update_xaxes(automargin=True, ticks="outside", ticklen=4, title_font_size=13)
    made.update_yaxes(
        automargin=True, ticks="outside", ticklen=5, tickcolor="rgba(0,0,0,0)", title_font_size=13, title_standoff=6
    )
    return made


def panels(titles: list[str], height: int, spacing: float) -> go.Figure:
    """An empty figure of panels, one below the other, each with its title above it. spacing: see `make_subplots`."""
    base = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=spacing)
    drawn = figure(height, base, showlegend=False)
    drawn.update_annotations(x=0, xanchor="left", font_size=13)
    return drawn


def colour_of(label: str, labels: list[str]) -> str:
    """The colour of a label, the same in every figure of a report."""
    return COLOURS[labels.index(label) % len(COLOURS)]


def slug(*parts: object) -> str:
    """A name for files and anchors: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(str(part) for part in parts).lower()).strip("-")


def shown(value: float | None, form: str = ".4f") -> str:
    """A figure as text, a dash where it is unknown."""
    return "\N{EN DASH}" if value is None else format(value, form)
