"""Which configuration validation chooses: one for each part that asks for it, system and dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation.config import CRITERION
from trainer.evaluation.report import read_report
from trainer.study.record import StudyRecord, TrialRecord, trial_state


@dataclass(frozen=True)
class Choice:
    """trials: of the chosen configuration, one for each seed. value: their mean validation NDCG@10. of: how many
    configurations there were; unfinished: of how many of them a trial failed, was stopped or has not ended."""

    part: str
    system: str
    dataset: str
    trials: tuple[TrialRecord, ...]
    value: float
    of: int
    unfinished: int


def choices(study: StudyRecord) -> list[Choice]:
    """The chosen configurations of all parts that test only these; a configuration counts when all its seeds ended."""
    chosen_parts = {part.name for part in study.parts if part.test == "chosen"}
    groups: dict[tuple[str, str, str], dict[str, list[TrialRecord]]] = {}
    for trial in study.trials:
        if trial.part in chosen_parts:
            group = groups.setdefault((trial.part, trial.system, trial.dataset), {})
            group.setdefault(trial.label, []).append(trial)
    found = [_best(study, *key, list(labels.values())) for key, labels in groups.items()]
    return [choice for choice in found if choice is not None]


def _best(
    study: StudyRecord, part: str, system: str, dataset: str, configurations: Sequence[Sequence[TrialRecord]]
) -> Choice | None:
    values = {
        place: _validation(study, trials)
        for place, trials in enumerate(configurations)
        if all(trial_state(study.run_folder(trial), test=False) == "finished" for trial in trials)
    }
    if not values:
        return None
    best = max(values, key=lambda place: values[place])  # of equals the first
    count = len(configurations)
    return Choice(part, system, dataset, tuple(configurations[best]), values[best], count, count - len(values))


def _validation(study: StudyRecord, trials: Sequence[TrialRecord]) -> float:
    values = [float(read_report(study.run_folder(trial) / "valid.json")[CRITERION]) for trial in trials]
    return sum(values) / len(values)
