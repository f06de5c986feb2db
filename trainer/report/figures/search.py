"""Tuned systems: the validation metric of every trial, and which settings made it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from trainer.report.figures.style import COLOURS, PageFigure, figure, slug
from trainer.report.read import Configuration, Study, chosen
from trainer.report.words import factors_text, plain
from trainer.study.record import PartRecord

_AXIS = 120


def search(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """For each dataset and system: the metric over trials, and parallel coordinates over the settings."""
    made = []
    for dataset, system, found in study.by_system(part):
        title, metric = f"{system} on {dataset}", study.record.metric
        factors = list(dict.fromkeys(factor for each in found for factor in each.first.factors))
        made.append(
            PageFigure(
                slug(part.name, dataset, system),
                title,
                f"Validation {metric} of each trial in the order of the search, and the best so far. Chosen: "
                f"{factors_text(chosen(found, metric).first.factors)}.",
                _over_trials(found, metric),
                commands,
                wide=True,
            )
        )
        made.append(
            PageFigure(
                slug(part.name, dataset, system, "settings"),
                f"{title}: settings",
                f"Each line is a trial; its colour and the last axis are validation {metric}. Drag along an axis "
                "to keep only the trials of a range.",
                _coordinates(found, factors, metric),
                commands,
                wide=True,
                least_width=_AXIS * (len(factors) + 1),
            )
        )
    return made


def _over_trials(found: Sequence[Configuration], metric: str) -> go.Figure:
    values = [each.figure(metric, "valid").mean or 0.0 for each in found]
    places = list(range(1, len(values) + 1))
    drawn = figure(340)
    drawn.add_scatter(
        x=places, y=values, mode="markers", name="trial", marker={"size": 9, "color": COLOURS[0]},
        customdata=[factors_text(each.first.factors) for each in found],
        hovertemplate=f"trial %{{x}}<br>%{{customdata}}<br>{metric} %{{y:.4f}}<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=places, y=list(accumulate(values, max)), mode="lines", name="best so far",
        line={"shape": "hv", "width": 2, "color": COLOURS[1]}, hoverinfo="skip",
    )  # fmt: skip
    drawn.update_xaxes(title_text="trial")
    drawn.update_yaxes(title_text=metric)
    return drawn


def _coordinates(found: Sequence[Configuration], factors: Sequence[str], metric: str) -> go.Figure:
    values = [each.figure(metric, "valid").mean or 0.0 for each in found]
    axes = [_axis(factor, [each.first.factors.get(factor) for each in found]) for factor in factors]
    drawn = figure(380)
    drawn.add_trace(
        go.Parcoords(
            dimensions=[*axes, {"label": metric, "values": values, "tickformat": ".4f"}],
            line={"color": values, "colorscale": [[0, COLOURS[8]], [1, COLOURS[1]]]},
            labelangle=0,
        )
    )
    drawn.update_layout(margin={"l": 60, "r": 60, "t": 64, "b": 24})
    return drawn


def _axis(factor: str, values: Sequence[Any]) -> dict[str, Any]:
    """Numbers on a scale; if any value is none, its values as ticks at equal distances."""
    label = factor.rpartition(".")[2]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {"label": label, "values": [float(value) for value in values]}
    words = list(dict.fromkeys(plain(value) for value in values))
    return {
        "label": label, "values": [words.index(plain(value)) for value in values],
        "tickvals": list(range(len(words))), "ticktext": words,
    }  # fmt: skip
