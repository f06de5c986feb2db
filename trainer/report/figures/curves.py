"""Learning curves: the validation metric and the ranking loss of every trial over epochs."""

from __future__ import annotations

from collections.abc import Sequence

from plotly.subplots import make_subplots

from trainer.report.figures.style import PageFigure, colour_of, figure, slug
from trainer.report.read import Study, Trial
from trainer.study.record import PartRecord

_MOST_IN_LEGEND, _MOST_TICKS = 6, 10


def curves(study: Study, part: PartRecord, commands: tuple[str, ...]) -> list[PageFigure]:
    """One figure per dataset, with a line for each trial that has two epochs."""
    made = []
    for dataset in study.record.datasets:
        trials = [
            trial
            for trial in study.trials
            if trial.record.part == part.name and trial.record.dataset == dataset and len(trial.epochs) > 1
        ]
        if not trials:
            continue
        base = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
        many = len({trial.record.stem for trial in trials}) > _MOST_IN_LEGEND
        drawn = figure(520, base, showlegend=not many)
        seen: set[str] = set()
        for trial in trials:
            _add(drawn, trial, study, trial.record.stem not in seen)
            seen.add(trial.record.stem)
        drawn.update_yaxes(title_text=study.record.metric, row=1, col=1)
        drawn.update_yaxes(title_text="ranking loss", row=2, col=1)
        longest = max(len(trial.epochs) for trial in trials)
        drawn.update_xaxes(dtick=1 if longest <= _MOST_TICKS else None)
        drawn.update_xaxes(title_text="epoch", row=2, col=1)
        made.append(
            PageFigure(
                slug("curves", part.name, dataset),
                f"{part.title}: {dataset}",
                f"Above, validation {study.record.metric}; below, the ranking loss of training rows. A line for each "
                "trial, in the colour of its system or variant.",
                drawn,
                commands,
            )
        )
    return made


def _add(drawn: object, trial: Trial, study: Study, legend: bool) -> None:
    label = trial.record.stem
    rows: Sequence[tuple[int, list[float | None]]] = [
        (1, [line["metrics"].get("valid", {}).get(study.record.metric) for line in trial.epochs]),
        (2, [line["metrics"].get("loss", {}).get("ranking") for line in trial.epochs]),
    ]
    for row, values in rows:
        drawn.add_scatter(  # type: ignore[attr-defined]
            x=[line["epoch"] for line in trial.epochs], y=values, mode="lines", row=row, col=1,
            name=label, legendgroup=label, showlegend=legend and row == 1,
            line={"color": colour_of(label, study.stems), "width": 1.6},
            hovertemplate=f"epoch %{{x}}: %{{y:.4f}}<extra>{trial.record.name}</extra>",
        )  # fmt: skip
