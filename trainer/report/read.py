"""A study as its report shows it: what every trial has written, and which trials are seeds of one configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainer.analysis.record import ANALYSIS, Analysis, read_analysis
from trainer.comparison.figures import Cost, Figure, over_seeds, recorded_cost
from trainer.evaluation.report import read_report
from trainer.study.record import PartRecord, State, StudyRecord, TrialRecord, read_study, trial_state
from trainer.tracking.metrics_log import read_lines
from trainer.tracking.study_files import FAILURE

Split = Literal["valid", "test"]
#: of splits in captions
WORDS: Mapping[Split, str] = {"valid": "validation", "test": "test"}
#: where the time of an epoch goes: the field of its line in metrics.jsonl, and its name in figures
TIMES = {"train_seconds": "training", "valid_seconds": "validation", "checkpoint_seconds": "checkpoint"}


@dataclass(frozen=True)
class Trial:
    """A trial and what its folder holds. reports: of the splits that it was evaluated on."""

    record: TrialRecord
    folder: Path
    state: State
    reports: Mapping[Split, Mapping[str, Any]]
    failure: Mapping[str, Any]

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file. Raises UserError for a damaged one."""
        path = self.folder / "metrics.jsonl"
        return read_lines(path, 0)[0] if path.exists() else []

    @cached_property
    def analysis(self) -> Analysis | None:
        """What `mealrec analyse` wrote into the folder."""
        path = self.folder / ANALYSIS
        return read_analysis(path) if path.exists() else None

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines that end an epoch."""
        return [line for line in self.lines if line["event"] == "epoch"]

    def seconds(self, field: str) -> float:
        """The sum of a field of TIMES over its epochs."""
        return sum(float(line["metrics"].get(field, 0.0)) for line in self.epochs)

    def value(self, key: str, split: Split) -> float | None:
        """A metric of the trial's report, every item ranked; None where it has none."""
        found = self.reports.get(split, {}).get(key)
        return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True)
class Configuration:
    """The trials of a part that differ in their seed alone."""

    part: PartRecord
    trials: tuple[Trial, ...]

    @property
    def first(self) -> TrialRecord:
        """Names of the configuration: `label`, `system`, `dataset` and `factors` are the same in all its trials."""
        return self.trials[0].record

    @property
    def finished(self) -> list[Trial]:
        """Its finished trials."""
        return [trial for trial in self.trials if trial.state == "finished"]

    @property
    def tested(self) -> list[Trial]:
        """Its finished trials that have read the test set."""
        return [trial for trial in self.finished if "test" in trial.reports]

    def figure(self, key: str, split: Split) -> Figure:
        """Mean and standard deviation of a metric over its finished seeds."""
        return over_seeds([trial.value(key, split) for trial in self.finished])

    @property
    def cost(self) -> Cost:
        """What its finished seeds recorded."""
        epochs = [epoch for trial in self.finished if (epoch := trial.value("epoch", "valid")) is not None]
        lines = [line for trial in self.finished for line in trial.lines]
        return recorded_cost(self.first.label, len(self.finished), epochs, lines)


@dataclass(frozen=True)
class Study:
    """A study and its trials, in the order of the plan."""

    record: StudyRecord
    trials: tuple[Trial, ...]

    def configurations(self, part: PartRecord, dataset: str | None = None) -> list[Configuration]:
        """Those of a part, in the order of the plan. dataset: only of this one."""
        groups: dict[tuple[str, str, str], list[Trial]] = {}
        for trial in self.trials:
            record = trial.record
            if record.part == part.name and dataset in (None, record.dataset):
                groups.setdefault((record.dataset, record.system, record.label), []).append(trial)
        return [Configuration(part, tuple(trials)) for trials in groups.values()]

    def by_dataset(self, part: PartRecord) -> Iterator[tuple[str, list[Configuration]]]:
        """The finished configurations of a part on each of its datasets; datasets without any are left out."""
        for dataset in self.record.datasets:
            if found := [each for each in self.configurations(part, dataset) if each.finished]:
                yield dataset, found

    def by_system(self, part: PartRecord) -> Iterator[tuple[str, str, list[Configuration]]]:
        """Dataset, system, and its finished configurations in a part; without what has none."""
        for dataset, every in self.by_dataset(part):
            for system in dict.fromkeys(each.first.system for each in every):
                yield dataset, system, [each for each in every if each.first.system == system]

    def in_state(self, state: State) -> list[Trial]:
        """The trials in this state."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def runs(self) -> list[Trial]:
        """The trials without those that share the folder of an earlier one."""
        return list({trial.folder: trial for trial in reversed(self.trials)}.values())[::-1]

    @cached_property
    def stems(self) -> list[str]:
        """Labels without the values of factors; the order is that of the plan."""
        return list(dict.fromkeys(trial.record.stem for trial in self.trials))

    @property
    def k(self) -> str:
        """The length of list of the metric that validation chooses by."""
        return self.record.metric.partition("@")[2]


def read(folder: Path) -> Study:
    """The study in `folder`. Raises UserError for a folder without study.json, and for damaged files."""
    record = read_study(folder)
    parts = {part.name: part for part in record.parts}
    trials = tuple(_trial(record.run_folder(each), each, parts[each.part]) for each in record.trials)
    return Study(record, trials)


def _trial(folder: Path, record: TrialRecord, part: PartRecord) -> Trial:
    state = trial_state(folder, part.test == "all")
    splits: tuple[Split, ...] = ("valid", "test")
    there = [split for split in splits if (folder / f"{split}.json").exists()]
    failure = read_report(folder / FAILURE) if state == "failed" else {}
    return Trial(record, folder, state, {split: read_report(folder / f"{split}.json") for split in there}, failure)


def split_to_show(found: Sequence[Configuration]) -> Split:
    """The test set, if all of them have read it; else validation."""
    return "test" if all(each.tested for each in found) else "valid"


def chosen(found: Sequence[Configuration], metric: str) -> Configuration:
    """The configuration that validation chose: the one that was tested, if one alone was; else the best."""
    tested = [each for each in found if each.tested]
    return max(tested if len(tested) == 1 else found, key=lambda each: each.figure(metric, "valid").mean or 0.0)
