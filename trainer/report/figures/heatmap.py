"""Two settings against each other: the validation metric of each pair, the chosen one marked (Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from trainer.report.figures.style import PageFigure, figure, slug
from trainer.report.read import Configuration, Study, chosen
from trainer.report.words import factors_text, plain
from trainer.study.record import PartRecord

_CELL = 46


def heatmaps(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset and system."""
    made = []
    for dataset, system, found in study.by_system(part):
        best = chosen(found, study.record.metric)
        made.append(
            PageFigure(
                slug(part.name, dataset, system),
                f"{system} on {dataset}",
                f"Validation {study.record.metric}, mean over seeds; darker is higher. Outlined: what validation "
                f"chose ({factors_text(best.first.factors)}). Empty cells have no finished trial.",
                _heatmap(found, part, study.record.metric, best),
                commands,
            )
        )
    return made


def _heatmap(found: Sequence[Configuration], part: PartRecord, metric: str, best: Configuration) -> go.Figure:
    across, down = part.factors[1], part.factors[0]
    columns, rows = _values(found, across), _values(found, down)
    cells = {
        (plain(each.first.factors[down]), plain(each.first.factors[across])): each.figure(metric, "valid").mean
        for each in found
    }
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    drawn = figure(110 + _CELL * len(rows))
    drawn.add_trace(
        go.Heatmap(
            x=columns, y=rows, z=values, colorscale="YlGnBu", xgap=2, ygap=2,
            texttemplate="%{z:.4f}", textfont={"size": 12},
            hovertemplate=f"{_short(down)} %{{y}}<br>{_short(across)} %{{x}}<br>{metric} %{{z:.4f}}<extra></extra>",
            colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".4f"}, showscale=len(columns) < 8,
        )
    )  # fmt: skip
    drawn.update_xaxes(type="category", title_text=across, showgrid=False)
    drawn.update_yaxes(type="category", title_text=_short(down), showgrid=False)
    x, y = columns.index(plain(best.first.factors[across])), rows.index(plain(best.first.factors[down]))
    drawn.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line={"color": "#ff725c", "width": 3})
    return drawn


def _values(found: Sequence[Configuration], factor: str) -> list[str]:
    values = {plain(value): value for each in found if (value := each.first.factors.get(factor)) is not None}
    return sorted(values, key=lambda text: _order(values[text]))


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _short(factor: str) -> str:
    return factor.rpartition(".")[2]
