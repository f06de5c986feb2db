"""Systems side by side: bars for each configuration, with the deviation over seeds (Table 2, Figs. 3 and 6)."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from trainer.report.figures.style import AROUND, BAR, ERROR, PageFigure, figure, shown, slug
from trainer.report.read import WORDS, Configuration, Split, Study, split_to_show
from trainer.report.words import plain
from trainer.study.record import PartRecord


def bars(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset, the best on top. Configurations that share a value of the first factor stand together."""
    made = []
    for dataset, found in study.by_dataset(part):
        split = split_to_show(found)
        keys = _keys(found, study, split)
        grouped = _groups(found, part)
        ordered = _ordered(found, study.record.metric, split, grouped)
        drawn = figure(AROUND + BAR * len(keys) * len(ordered), barmode="group", bargap=0.25)
        for key in keys:
            drawn.add_trace(_bars(ordered, key, split, grouped))
        drawn.update_xaxes(rangemode="tozero", title_text=f"{WORDS[split]} metric")
        drawn.update_yaxes(autorange="reversed", showgrid=False)
        # plotly draws the first trace lowest; reversed, it would be the topmost while the legend begins with it
        drawn.update_layout(legend_traceorder="normal")
        seeds = max(len(each.finished) for each in found)
        about = f"mean over {seeds} seeds; the line is one standard deviation" if seeds > 1 else "one seed each"
        made.append(
            PageFigure(
                slug(part.name, dataset),
                f"{' and '.join(keys)} on {dataset}",
                f"{' and '.join(keys)} of the {WORDS[split]} targets, every item ranked; {about}.",
                drawn,
                commands,
            )
        )
    return made


def _keys(found: Sequence[Configuration], study: Study, split: Split) -> list[str]:
    """The metric that validation chooses by, and the hit rate at its length."""
    wanted = dict.fromkeys([study.record.metric, f"NDCG@{study.k}", f"HR@{study.k}"])
    return [key for key in wanted if any(each.figure(key, split).mean is not None for each in found)]


def _groups(found: Sequence[Configuration], part: PartRecord) -> bool:
    """Whether the first factor of the part has several values, each of several configurations."""
    if not part.factors:
        return False
    values = [plain(each.first.factors.get(part.factors[0])) for each in found]
    return 1 < len(set(values)) < len(values)


def _ordered(found: list[Configuration], metric: str, split: Split, grouped: bool) -> list[Configuration]:
    """The best first; groups in the order of the plan, and within them that of the plan, too."""
    if grouped:
        first = found[0].part.factors[0]
        order = list(dict.fromkeys(plain(each.first.factors.get(first)) for each in found))
        return sorted(found, key=lambda each: order.index(plain(each.first.factors.get(first))))
    return sorted(found, key=lambda each: -(each.figure(metric, split).mean or 0.0))


def _bars(ordered: Sequence[Configuration], key: str, split: Split, grouped: bool) -> go.Bar:
    figures = [each.figure(key, split) for each in ordered]
    labels = [each.first.stem if grouped else each.first.label for each in ordered]
    groups = [plain(each.first.factors.get(each.part.factors[0])) for each in ordered] if grouped else []
    spread = [each.spread for each in figures]
    return go.Bar(
        name=key,
        orientation="h",
        x=[each.mean for each in figures],
        y=[groups, labels] if grouped else labels,
        error_x={"type": "data", "array": spread, "thickness": 1.5, "width": 3, "color": ERROR}
        if any(spread)
        else None,
        customdata=[[shown(each.spread), len(one.finished)] for each, one in zip(figures, ordered, strict=True)],
        hovertemplate=f"%{{y}}<br>{key} %{{x:.4f}} ± %{{customdata[0]}}<br>seeds: %{{customdata[1]}}<extra></extra>",
    )
