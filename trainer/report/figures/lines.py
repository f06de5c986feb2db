"""One setting on the x axis, a line per system (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trainer.report.figures.style import PageFigure, colour_of, figure, shown, slug
from trainer.report.read import WORDS, Configuration, Split, Study, split_to_show
from trainer.study.record import PartRecord


def lines(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset: NDCG and the hit rate over the first factor of the part."""
    made = []
    factor = part.factors[0]
    for dataset, found in study.by_dataset(part):
        split = split_to_show(found)
        keys = [f"NDCG@{study.k}", f"HR@{study.k}"]
        drawn = figure(460, make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08))
        for label in dict.fromkeys(each.first.stem for each in found):
            mine = [each for each in found if each.first.stem == label]
            for row, key in enumerate(keys, 1):
                drawn.add_trace(_line(mine, factor, key, split, colour_of(label, study.stems), row == 1), row, 1)
        for row, key in enumerate(keys, 1):
            drawn.update_yaxes(title_text=key, row=row, col=1)
        drawn.update_xaxes(title_text=factor, row=2, col=1)
        made.append(
            PageFigure(
                slug(part.name, dataset),
                f"{' and '.join(keys)} over {factor} on {dataset}",
                f"{WORDS[split].capitalize()} metrics over {factor}; bars are one standard deviation over seeds.",
                drawn,
                commands,
            )
        )
    return made


def _line(found: Sequence[Configuration], factor: str, key: str, split: Split, colour: str, legend: bool) -> go.Scatter:
    ordered = sorted(found, key=lambda each: float(each.first.factors[factor]))
    figures = [each.figure(key, split) for each in ordered]
    spread = [each.spread for each in figures]
    return go.Scatter(
        name=ordered[0].first.stem,
        legendgroup=ordered[0].first.stem,
        showlegend=legend,
        mode="lines+markers",
        x=[float(each.first.factors[factor]) for each in ordered],
        y=[each.mean for each in figures],
        error_y={"type": "data", "array": spread, "thickness": 1.5, "width": 3} if any(spread) else None,
        line={"color": colour, "width": 2},
        marker={"size": 7},
        customdata=[shown(each.spread) for each in figures],
        hovertemplate=f"{factor} %{{x}}<br>{key} %{{y:.4f}} ± %{{customdata}}<extra>%{{fullData.name}}</extra>",
    )
