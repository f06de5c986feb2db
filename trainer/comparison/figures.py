"""The figures of a comparison: metrics of each system, the differences between them, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.summary import mean_metrics, warm_cold
from trainer.comparison.differences import Differences, differences
from trainer.comparison.seeds import System
from trainer.evaluation.report import best_possible_figures
from trainer.tracking.metrics_log import read_lines

_ORDER = MetricChoice(("NDCG",), (10,))


@dataclass(frozen=True)
class Figure:
    """mean: over seeds; None if unknown. spread: standard deviation over seeds; None for one seed."""

    mean: float | None
    spread: float | None = None


@dataclass(frozen=True)
class Row:
    """Metrics by key of a system for all, warm or cold targets, which `users` users have."""

    system: str
    seeds: str
    targets: str
    users: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Gain:
    """The difference to the best other system in a metric, relative to it; None if that one has 0."""

    against: str
    relative: float | None


@dataclass(frozen=True)
class Ranking:
    """title: how items were ranked. rows, differences: the best system by NDCG@10 first.

    gains: of the reference, by key of the metric; empty without other systems. They take the best other system in each
    metric, as the paper's "Rel. Imp." does.
    """

    title: str
    reference: str
    rows: list[Row]
    differences: Differences
    gains: dict[str, Gain]


@dataclass(frozen=True)
class Cost:
    """Medians over epochs and runs; None where the runs recorded nothing."""

    system: str
    runs: int
    best_epoch: float | None
    epoch_seconds: float | None
    valid_seconds: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class Line:
    """One of the paper's systems, and a system of ours that is the same; `run` is None where there is none.

    theirs, ours: figures by metric; ours are None where nothing was recorded, and empty without a run.
    """

    printed: str
    run: str | None
    theirs: Mapping[str, float]
    ours: Mapping[str, float | None]


@dataclass(frozen=True)
class Beside:
    """A table of the paper beside ours. metrics: those that both have."""

    table: int
    title: str
    metrics: tuple[str, ...]
    lines: list[Line]


@dataclass(frozen=True)
class Comparison:
    """keys: of the metrics. rankings: by name, `all` and `masked`. notes: about seeds, tests and what is left out.

    published: the paper's tables beside ours, where they were asked for and the dataset is the same.
    """

    users: int
    cold: int
    keys: tuple[str, ...]
    systems: list[System]
    rankings: dict[str, Ranking]
    costs: list[Cost]
    notes: list[str]
    published: list[Beside] = field(default_factory=list)

    @property
    def head(self) -> str:
        """How many users there are, and how many have a cold target."""
        return (
            f"{self.users:,} test user{'s' if self.users > 1 else ''}; "
            f"cold targets (not in any training row): {self.cold:,} ({100 * self.cold / self.users:.1f} %)"
        )


def best(systems: Sequence[System], masked: bool = False) -> list[System]:
    """The systems by NDCG@10, the best one first."""
    scores = [
        np.mean([mean_metrics(run.ranks.ranks(masked), _ORDER)["NDCG@10"] for run in system.runs]) for system in systems
    ]
    return [systems[place] for place in sorted(range(len(systems)), key=lambda place: -scores[place])]


def ranking(title: str, systems: Sequence[System], reference: System, masked: bool, choice: MetricChoice) -> Ranking:
    """Metrics and tests for one way of ranking: all items, or with the user's own history masked."""
    ordered = best(systems, masked)
    rows = [row for system in ordered for row in _rows(system, masked, choice)]
    gains = _gains(reference.label, [row for row in rows if row.targets == "all"], choice)
    truth = next((run.report["truth"] for each in systems for run in each.runs if run.report.get("truth")), None)
    if masked and truth:
        possible = best_possible_figures(truth, choice.keys)
        figures = {key: Figure(value) for key, value in possible.items()}
        rows.append(Row("best possible", "-", "all", rows[0].users, figures))
    k = 10 if 10 in choice.ks else choice.ks[0]
    listed = MetricChoice(tuple(sorted(choice.names, key=lambda name: name != "NDCG")), (k,)).keys
    others = [system for system in ordered if system is not reference]
    return Ranking(title, reference.label, rows, differences(reference, others, masked, choice, listed), gains)


def _gains(reference: str, rows: Sequence[Row], choice: MetricChoice) -> dict[str, Gain]:
    means = {row.system: {key: row.figures[key].mean or 0.0 for key in choice.keys} for row in rows}
    own = means.pop(reference)
    gains = {}
    for key in choice.keys if means else ():
        other = max(means, key=lambda name: means[name][key])
        value = means[other][key]
        gains[key] = Gain(other, own[key] / value - 1 if value else None)
    return gains


def _rows(system: System, masked: bool, choice: MetricChoice) -> list[Row]:
    apart = [warm_cold(run.ranks.ranks(masked), run.ranks.cold, choice) for run in system.runs]
    every = [mean_metrics(run.ranks.ranks(masked), choice) for run in system.runs]
    whole = Row(system.label, system.seed_count, "all", len(system.runs[0].ranks.user), _figures(every, choice))
    parts = (
        ("warm", apart[0].warm.count, [part.warm.metrics for part in apart]),
        ("cold", apart[0].cold.count, [part.cold.metrics for part in apart]),
    )
    apart_rows = [replace(whole, targets=name, users=n, figures=_figures(seeds, choice)) for name, n, seeds in parts]
    return [whole, *apart_rows]


def _figures(seeds: Sequence[dict[str, float]], choice: MetricChoice) -> dict[str, Figure]:
    """seeds: metrics of each; empty where no user has such a target."""
    return {key: over_seeds([seed.get(key) for seed in seeds]) for key in choice.keys}


def over_seeds(values: Sequence[float | None]) -> Figure:
    """Mean and standard deviation (n - 1) of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return Figure(None)
    return Figure(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def cost(system: System) -> Cost:
    """What the runs of a system recorded of their epochs and memory."""
    epochs = [run.report["epoch"] for run in system.runs if run.report.get("epoch") is not None]
    paths = [run.folder / "metrics.jsonl" for run in system.runs]
    lines = [line for path in paths if path.exists() for line in read_lines(path, 0)[0]]
    return recorded_cost(system.label, len(system.runs), epochs, lines)


def recorded_cost(system: str, runs: int, best_epochs: Sequence[float], lines: Sequence[Mapping[str, Any]]) -> Cost:
    """The medians of some runs. lines: of their metrics.jsonl."""
    noted = [
        [line["metrics"][name] for line in lines if name in line["metrics"]]
        for name in ("train_seconds", "valid_seconds", "peak_memory_mib")
    ]
    return Cost(system, runs, _median(best_epochs), *map(_median, noted))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
