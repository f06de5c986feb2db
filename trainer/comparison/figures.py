"""The figures of a comparison: metrics of each system, and tests of the differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.significance import PairedTest, SeedTest, paired_t_test, welch_t_test
from retrieval.metrics.summary import mean_metrics, warm_cold
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
class Difference:
    """The tested difference in a metric, reference minus `against`; `over` ("users", "seeds") is what p is over."""

    against: str
    metric: str
    over: str
    sample: str
    result: PairedTest | SeedTest


@dataclass(frozen=True)
class Ranking:
    """title: how items were ranked. rows, tests: the best system by NDCG@10 first."""

    title: str
    reference: str
    rows: list[Row]
    tests: list[Difference]


@dataclass(frozen=True)
class Cost:
    """Medians over epochs and runs; None where the runs recorded nothing."""

    system: str
    runs: int
    best_epoch: float | None
    epoch_seconds: float | None
    peak_mib: float | None


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
    truth = next((run.report["truth"] for each in systems for run in each.runs if run.report.get("truth")), None)
    if masked and truth:
        possible = best_possible_figures(truth, choice.keys)
        figures = {key: Figure(value) for key, value in possible.items()}
        rows.append(Row("best possible", "-", "all", rows[0].users, figures))
    k = 10 if 10 in choice.ks else choice.ks[0]
    tested = MetricChoice(tuple(sorted(choice.names, key=lambda name: name != "NDCG")), (k,))
    others = [system for system in ordered if system is not reference]
    tests = [test for other in others for test in _tests(reference, other, masked, tested)]
    return Ranking(title, reference.label, rows, tests)


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
    if not seeds[0]:  # no user has such a target
        return {key: Figure(None) for key in choice.keys}
    values = {key: [seed[key] for seed in seeds] for key in choice.keys}
    several = len(seeds) > 1
    return {
        key: Figure(float(np.mean(each)), float(np.std(each, ddof=1)) if several else None)
        for key, each in values.items()
    }


def _tests(reference: System, other: System, masked: bool, choice: MetricChoice) -> list[Difference]:
    """Over users, if there are two or more; and over seeds, if both systems have several or are the same with any."""
    a, b = reference.per_user(masked, choice), other.per_user(masked, choice)
    found = []
    counts = [_in_words(system.seed_count) for system in (reference, other)]
    same = counts[0] == counts[1]
    over_seeds = all(system.is_fixed or len(system.runs) > 1 for system in (reference, other))
    first, second = (
        [mean_metrics(run.ranks.ranks(masked), choice) for run in system.runs] for system in (reference, other)
    )
    for key in choice.keys:
        if (n := len(a[key])) > 1:
            sample = f"{n:,} users of {counts[0] if same else ', '.join(counts)}"
            found.append(Difference(other.label, key, "users", sample, paired_t_test(a[key], b[key])))
        means = np.array([seed[key] for seed in first]), np.array([seed[key] for seed in second])
        if over_seeds and (result := welch_t_test(*means)):
            sample = f"{counts[0]} each" if same else " and ".join(counts)
            found.append(Difference(other.label, key, "seeds", sample, result))
    return found


def _in_words(seed_count: str) -> str:
    return f"{seed_count} seed" if seed_count in ("one", "any") else f"{seed_count} seeds"


def cost(system: System) -> Cost:
    """What the runs of a system recorded of their epochs and memory."""
    epochs, seconds, peak = [], [], []
    for run in system.runs:
        epochs.append(run.report.get("epoch"))
        path = run.folder / "metrics.jsonl"
        lines = read_lines(path, 0)[0] if path.exists() else []
        seconds += [line["metrics"]["train_seconds"] for line in lines if line["event"] == "epoch"]
        peak += [line["metrics"]["peak_memory_mib"] for line in lines if "peak_memory_mib" in line["metrics"]]
    known = [epoch for epoch in epochs if epoch is not None]
    return Cost(system.label, len(system.runs), _median(known), _median(seconds), _median(peak))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
