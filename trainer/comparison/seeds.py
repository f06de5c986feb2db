"""Which runs are seeds of one system: those whose settings, data and evaluation are equal but for the seed.

Names decide nothing. What was joined, and what was not although its name suggests it, is told in notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.metrics.base import Values
from retrieval.metrics.registry import MetricChoice
from trainer.comparison.runs import FinishedRun
from trainer.evaluation.run_ranks import mean_over_seeds
from trainer.tracking.describe import flat

_MOST_KEYS = 3
Settings = dict[str, Any]


@dataclass(frozen=True)
class System:
    """One system: a run, or several that differ in their seed alone.

    label: what it is called in tables. repeats: whether it has settings and seeds that another one has, too.
    """

    label: str
    runs: list[FinishedRun]
    repeats: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether every seed gives the same: it is not trained, as baselines are not."""
        config, ranks = self.runs[0].config, [run.ranks for run in self.runs]
        untrained = config is not None and not config.model.options.trained
        return untrained and all(np.array_equal(ranks[0].rank, each.rank) for each in ranks[1:])

    @property
    def seed_count(self) -> str:
        """The number of seeds for a column: "one" to be aware of it, and "any" where the seed does not matter."""
        return "any" if self.is_fixed else "one" if len(self.runs) == 1 else str(len(self.runs))

    @property
    def name(self) -> str | None:
        """The system's name, as `--model` has it; None if the configuration cannot be read."""
        config = self.runs[0].config
        return config.model.name if config else None

    def per_user(self, masked: bool, choice: MetricChoice) -> dict[str, Values]:
        """Metrics of each user by key, (U,) float64 each: the mean over seeds."""
        return mean_over_seeds([run.ranks for run in self.runs], masked, choice)


@dataclass(frozen=True)
class _Group:
    """settings: None for a run whose configuration cannot be read, which stays alone."""

    settings: Settings | None
    runs: list[FinishedRun]
    repeats: bool


def join(runs: Sequence[FinishedRun]) -> tuple[list[System], list[str]]:
    """The systems, in the order of their first runs, and notes about what was joined and what was not."""
    groups: list[_Group] = []
    repeats = []
    for run in runs:
        settings = _settings(run)
        alike = [group for group in groups if settings is not None and group.settings == settings]
        home = next((group for group in alike if _seed(run) not in map(_seed, group.runs)), None)
        if home is None:
            groups.append(_Group(settings, [run], bool(alike)))
        else:
            home.runs.append(run)
        if alike and home is None:
            other = next(each for each in alike[0].runs if _seed(each) == _seed(run))
            repeats.append(
                f"{run.name} has the settings and the seed ({_seed(run)}) of {other.name}: it repeats that run and is "
                "not another seed, so it stands alone"
            )
    systems = [System(_label(group.runs, runs), group.runs, group.repeats) for group in groups]
    return systems, [*_joined(systems), *repeats, *_apart(groups)]


def stem(name: str) -> str:
    """The name of a run without the seed, which `mealrec train --seeds` puts at its end."""
    return re.sub(r"-s\d+$", "", name)


def _seed(run: FinishedRun) -> int | None:
    return run.config.seed if run.config else None


def _settings(run: FinishedRun) -> Settings | None:
    """All but the seed that decides the figures, by key; None if the configuration cannot be read."""
    if run.config is None:
        return None
    settings = {key: value for key, value in flat(run.config.deciding(), ".") if key != "seed"}
    evaluation = run.config.eval
    ranked_by = evaluation.index
    if ranked_by == "auto":  # what it came to
        ranked_by = str(run.report.get("index", {}).get("kind", "exact"))
    settings |= {"train.epochs": run.config.train.epochs, "eval.index": ranked_by}
    if ranked_by != "exact":
        settings["eval.depth"] = evaluation.depth
    settings["data.path (sha256 of its manifest.json)"] = str(run.identity.get("manifest", "unknown"))[:12]
    return settings


def _label(group: Sequence[FinishedRun], runs: Iterable[FinishedRun]) -> str:
    """The name without the seed, if that means these runs and no other."""
    first, *others = group
    if not others:
        return first.name
    common = stem(first.name)
    if {run.name for run in runs if stem(run.name) == common} == {run.name for run in group}:
        return common
    return f"{first.name} and {len(others)} more"


def _joined(systems: Sequence[System]) -> list[str]:
    return [
        f"{system.label}: the mean over seeds of {', '.join(f'{run.name} (seed {_seed(run)})' for run in system.runs)}"
        "; settings, data and evaluation are equal but for the seed"
        for system in systems
        if len(system.runs) > 1
    ]


def _apart(groups: Sequence[_Group]) -> list[str]:
    """Notes about groups whose runs are named like seeds of one system, and that are not."""
    notes = []
    of_name: dict[str, tuple[str, _Group]] = {}
    for group in groups:
        for name in dict.fromkeys(stem(run.name) for run in group.runs):
            members = [run.name for run in group.runs if stem(run.name) == name]
            first, of_first = of_name.setdefault(name, (members[0], group))
            if of_first is not group and (why := _why_apart(of_first.settings, group.settings)):
                verb = "is" if len(members) == 1 else "are"
                notes.append(f"{' and '.join(members)} {verb} not joined with {first}, in spite of the name: {why}")
    return notes


def _why_apart(before: Settings | None, now: Settings | None) -> str | None:
    """The settings in which two runs differ; None if they are the same, as in a repeat."""
    if before is None or now is None:
        return "one of their config.yaml does not fit this version of MealRec"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    texts = [f"{key}: {now.get(key, 'none')} instead of {before.get(key, 'none')}" for key in keys[:_MOST_KEYS]]
    more = [f"{len(keys) - _MOST_KEYS} more settings differ"] if len(keys) > _MOST_KEYS else []
    return "; ".join([*texts, *more]) or None
