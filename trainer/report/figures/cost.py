"""What systems cost: seconds of an epoch and of its validation, and peak memory (Table 3); and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from trainer.report.figures.style import AROUND, BAR, COLOURS, PageFigure, figure, panels, slug
from trainer.report.read import TIMES, Study, Trial
from trainer.study.record import PartRecord

_MOST_ROWS = 30
#: how much larger the largest value of a linear axis may be than the smallest
_WIDE = 20
#: panels, and the fields of Cost that they show
_PANELS = {"seconds per epoch": "epoch_seconds", "seconds per evaluation": "valid_seconds",
           "peak memory, MiB": "peak_mib"}  # fmt: skip


def complexity(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset, with a panel for each of the three costs."""
    made = []
    for dataset, found in study.by_dataset(part):
        costs = [known for each in found if (known := each.cost).epoch_seconds is not None]
        if not costs:
            continue
        drawn = panels(list(_PANELS), 3 * (74 + BAR * len(costs)), 0.14)
        for row, (title, field) in enumerate(_PANELS.items(), 1):
            values = [getattr(each, field) for each in costs]
            drawn.add_trace(_panel([each.system for each in costs], values, title, COLOURS[row - 1]), row, 1)
            drawn.update_xaxes(**_scale([value for value in values if value is not None]), row=row, col=1)
        drawn.update_yaxes(autorange="reversed", showgrid=False)
        made.append(
            PageFigure(
                slug(part.name, dataset),
                f"Cost on {dataset}",
                "Medians over epochs and seeds; an axis is logarithmic where values differ by more "
                f"than a factor of {_WIDE}. Memory is that of the GPU where one was used, else that of the process.",
                drawn,
                commands,
            )
        )
    return made


def time_spent(study: Study, commands: tuple[str, ...]) -> list[PageFigure]:
    """Where the time of all trials went; none where no trial has finished an epoch. One bar per label, or per part and
    system if there are too many labels."""
    rows: dict[str, list[Trial]] = {}
    wide = len({(trial.record.part, trial.record.label) for trial in study.trials}) > _MOST_ROWS
    for trial in study.runs:
        record = trial.record
        rows.setdefault(f"{record.part}: {record.system if wide else record.label}", []).append(trial)
    rows = {name: trials for name, trials in rows.items() if any(trial.epochs for trial in trials)}
    if not rows:
        return []
    drawn = figure(AROUND + BAR * len(rows), barmode="stack", bargap=0.3)
    for (field, name), colour in zip(TIMES.items(), COLOURS, strict=False):
        minutes = [sum(trial.seconds(field) for trial in trials) / 60 for trials in rows.values()]
        drawn.add_trace(
            go.Bar(
                name=name, orientation="h", x=minutes, y=list(rows), marker={"color": colour},
                hovertemplate=f"%{{y}}<br>{name}: %{{x:.2f}} min<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_layout(legend_traceorder="normal")
    drawn.update_xaxes(title_text="minutes over all seeds")
    drawn.update_yaxes(autorange="reversed", showgrid=False)
    caption = "Measured in the runs: training steps, validation at the end of each epoch, and writing checkpoints."
    return [PageFigure("time", "Where the time went", caption, drawn, commands)]


def _panel(labels: Sequence[str], values: Sequence[float | None], title: str, colour: str) -> go.Bar:
    texts = ["" if value is None else f"{value:,.{_digits(value)}f}" for value in values]
    return go.Bar(
        orientation="h", x=values, y=labels, text=texts, textposition="auto", cliponaxis=False,
        marker={"color": colour}, hovertemplate=f"%{{y}}<br>{title}: %{{text}}<extra></extra>",
    )  # fmt: skip


def _scale(values: Sequence[float]) -> dict[str, object]:
    """An axis that begins at zero, or a logarithmic one where the smallest value would be no bar to see."""
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        return {"type": "log", "dtick": 1}
    return {"rangemode": "tozero", "nticks": 5}


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2
