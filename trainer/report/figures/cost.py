"""What systems cost: seconds of an epoch and of its validation, and peak memory (Table 3); and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trainer.report.figures.style import AROUND, BAR, COLOURS, PageFigure, figure, slug
from trainer.report.read import Configuration, Study, Trial
from trainer.study.record import PartRecord

_MOST_ROWS = 30
#: how much larger the largest value of a linear axis may be than the smallest
_WIDE = 20
_PARTS = ("training", "validation", "checkpoint")
_FIELDS = ("train_seconds", "valid_seconds", "checkpoint_seconds")


@dataclass(frozen=True)
class Cost:
    """Medians over the epochs of all seeds, in seconds and MiB; None where the runs recorded nothing."""

    label: str
    epoch_s: float | None
    evaluation_s: float | None
    peak_mib: float | None


def cost(configuration: Configuration) -> Cost:
    """What the finished seeds of a configuration recorded."""
    finished = configuration.finished
    return Cost(
        configuration.first.label,
        _median([value for trial in finished for value in _each(trial, "train_seconds")]),
        _median([value for trial in finished for value in _each(trial, "valid_seconds")]),
        _median(
            [
                float(line["metrics"]["peak_memory_mib"])
                for trial in finished
                for line in trial.lines
                if "peak_memory_mib" in line["metrics"]
            ]
        ),
    )


def complexity(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset, with a panel for each of the three costs."""
    made = []
    panels = {"seconds per epoch": "epoch_s", "seconds per evaluation": "evaluation_s", "peak memory, MiB": "peak_mib"}
    for dataset, found in study.by_dataset(part):
        costs = [known for each in found if (known := cost(each)).epoch_s is not None]
        if not costs:
            continue
        base = make_subplots(rows=3, cols=1, subplot_titles=list(panels), vertical_spacing=0.14)
        drawn = figure(3 * (74 + BAR * len(costs)), base, showlegend=False)
        for row, (title, field) in enumerate(panels.items(), 1):
            values = [getattr(each, field) for each in costs]
            drawn.add_trace(_panel([each.label for each in costs], values, title, COLOURS[row - 1]), row, 1)
            drawn.update_xaxes(**_scale([value for value in values if value is not None]), row=row, col=1)
        drawn.update_yaxes(autorange="reversed", showgrid=False)
        drawn.update_annotations(x=0, xanchor="left", font_size=13)
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
    for name, field, colour in zip(_PARTS, _FIELDS, COLOURS, strict=False):
        minutes = [sum(sum(_each(trial, field)) for trial in trials) / 60 for trials in rows.values()]
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


def _each(trial: Trial, field: str) -> list[float]:
    return [float(line["metrics"][field]) for line in trial.epochs if field in line["metrics"]]


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
