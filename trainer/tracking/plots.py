"""Pictures for MLflow: the learning curves of a run, and the runs of one `mealrec train` side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.tracking.describe import metric_keys


def learning_curves(lines: Sequence[Mapping[str, Any]], title: str, out: Path) -> bool:
    """Write a PNG of losses and validation metrics over epochs; False, and no file, without two epochs."""
    epochs = [line for line in lines if line["event"] == "epoch"]
    if len(epochs) < 2:
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, section, label in zip(panels, ("loss", "valid"), ("training loss", "validation metric"), strict=True):
        parts = [(line["epoch"], _parts(line["metrics"].get(section), section)) for line in epochs]
        for name in dict.fromkeys(name for _, values in parts for name in values):
            drawn = [(epoch, values[name]) for epoch, values in parts if name in values]
            panel.plot(*zip(*drawn, strict=True), marker=".", label=name)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.suptitle(title)
    figure.savefig(out, dpi=100)
    return True


def _parts(value: Any, name: str) -> dict[str, float]:
    """Figures by name, those that are not finite left out; a single one has the name of its section."""
    every = value if isinstance(value, Mapping) else {name: value}
    return {str(key): float(part) for key, part in every.items() if isinstance(part, int | float)}


def comparison(reports: Mapping[str, Mapping[str, Any]], title: str, out: Path) -> None:
    """Write a PNG of the test metrics of runs as bars: every item ranked, and the history masked."""
    figure = Figure(figsize=(max(8.0, 1.2 * len(reports) + 4), 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    width = 0.8 / max(len(reports), 1)
    keys = list(dict.fromkeys(key for report in reports.values() for key in metric_keys(report)))
    for panel, key, label in zip(panels, (None, "masked"), ("every item ranked", "history masked"), strict=True):
        for place, (name, report) in enumerate(reports.items()):
            values = (report.get(key) or {}) if key else report
            heights = [float(values.get(metric) or 0.0) for metric in keys]
            panel.bar([at + place * width for at in range(len(keys))], heights, width, label=name)
        panel.set_xticks([at + 0.4 - width / 2 for at in range(len(keys))], keys)
        panel.set_title(label)
        panel.grid(axis="y", alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(f"{title}: test metrics")
    figure.savefig(out, dpi=100)
