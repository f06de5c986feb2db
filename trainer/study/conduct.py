"""Carry out the trials of a study: those that are not finished, on Ray, first all for validation, then the tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import console
from cluster.console import Verbosity
from cluster.ray_tune import Halving, Slots, checked_slots, one_after_the_other, run_trials
from cluster.session import connected
from trainer.data.storage import is_url
from trainer.evaluation.config import CRITERION
from trainer.evaluation.report import read_report
from trainer.study.choose import choices
from trainer.study.plan import Plan
from trainer.study.progress import StudyProgress
from trainer.study.record import StudyRecord, failure, trial_state
from trainer.study.trial import note_death, note_stopped, run_trial
from trainer.study.trials import Trial


@dataclass(frozen=True)
class Machine:
    """What a study runs on. parallel: trials at once, None for as many as fit. gpus: whether trials use GPUs, None if
    there are any. cpus_here, gpus_here: of this machine, for a Ray that is started on it. inline: without Ray."""

    parallel: int | None
    gpus: bool | None
    cpus_here: int
    gpus_here: int
    inline: bool = False


def conduct(study: StudyRecord, plan: Plan, trials: Sequence[Trial], machine: Machine) -> None:
    """Run what is not finished yet. A trial that fails is noted, and the others go on. Raises PreflightError."""
    _Conductor(study, plan, trials, machine).run()


def outstanding(study: StudyRecord, trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have not ended, one for each run; failed ones are tried again."""
    runs = {trial.run: trial for trial in trials if trial.run == trial.name}
    return [
        trial
        for trial in runs.values()
        if trial_state(study.folder / trial.run, trial.test) not in ("finished", "stopped")
    ]


class _Conductor:
    def __init__(self, study: StudyRecord, plan: Plan, trials: Sequence[Trial], machine: Machine) -> None:
        self.study, self.plan, self.machine = study, plan, machine
        self.trials = {trial.name: trial for trial in trials}

    def run(self) -> None:
        machine = self.machine
        if machine.inline:
            self._all(None)
            return
        paths = {trial.config.data.path for trial in self.trials.values()}
        with connected(cpus=machine.parallel or machine.cpus_here, gpus=machine.gpus_here):
            folders = [Path(path) for path in paths if not is_url(path)]
            self._all(checked_slots(machine.parallel, machine.gpus, self.study.folder, folders))

    def _all(self, where: Slots | None) -> None:
        open_trials = outstanding(self.study, self.trials.values())
        progress = self._progress(open_trials, where)
        together = [trial for trial in open_trials if not (trial.alone or trial.searched)]
        self._run(together, where, progress)
        for group in self._searches():
            first = group[0]
            epochs = first.config.train.epochs
            grace = min(self.plan.parts[first.part].patience, epochs)
            self._run(group, where, progress, Halving(epochs, grace) if epochs > grace else None)
        alone = where and Slots(1, where.cpus, 1.0 if where.gpus else 0.0, fresh=True)
        self._run([trial for trial in open_trials if trial.alone], alone, progress)
        if chosen := self._chosen():
            console.say(f"testing what validation chose: {len(chosen)} runs", Verbosity.BRIEF)
            self._run(chosen, where, self._progress(chosen, where), test=True)

    def _progress(self, trials: Sequence[Trial], where: Slots | None) -> StudyProgress:
        names = [trial.name for trial in trials]
        return StudyProgress(names, where.at_once if where else 1, self._outcome, self._value)

    def _searches(self) -> list[list[Trial]]:
        """The trials of each search that has not ended, finished ones too: the scheduler compares with these."""
        groups: dict[tuple[str, str, str], list[Trial]] = {}
        for trial in self.trials.values():
            if trial.searched:
                groups.setdefault((trial.part, trial.system, trial.dataset), []).append(trial)
        return [group for group in groups.values() if outstanding(self.study, group)]

    def _chosen(self) -> list[Trial]:
        """The trials that validation chose and that are not tested yet."""
        runs = dict.fromkeys(trial.run for choice in choices(self.study) for trial in choice.trials)
        return [self.trials[run] for run in runs if trial_state(self.study.folder / run, test=True) != "finished"]

    def _run(
        self,
        trials: Sequence[Trial],
        where: Slots | None,
        progress: StudyProgress,
        halving: Halving | None = None,
        test: bool = False,
    ) -> None:
        """test: all of them read the test targets, also those of parts that choose."""
        if not trials:
            return
        threads = max(1, self.machine.cpus_here // (where.at_once if where else 1))
        content = {trial.name: self._settings(trial, threads, test or trial.test) for trial in trials}
        if where is None:
            one_after_the_other(run_trial, content, progress)
            return
        run_trials(run_trial, content, where, self.study.folder / "ray", progress, halving)
        for trial in trials:
            folder = self.study.folder / trial.run
            if trial.name in progress.deaths:
                note_death(folder, progress.deaths[trial.name])
            elif halving and trial_state(folder, test=False) == "unfinished":
                note_stopped(folder)  # its process ended before it could

    def _settings(self, trial: Trial, threads: int, test: bool) -> dict[str, Any]:
        config: Mapping[str, Any] = trial.config.model_dump(mode="json")
        threads = trial.config.cluster.threads or threads
        return {
            "config": {**config, "cluster": {**config["cluster"], "threads": threads}},
            "run_dir": str(self.study.folder / trial.run), "command": self.study.command, "test": test,
            "mirror": False,
        }  # fmt: skip

    def _outcome(self, name: str) -> str | None:
        folder = self.study.folder / self.trials[name].run
        state = trial_state(folder, test=False)
        if state == "failed":
            return failure(folder)
        # the scheduler tells of a stop before the trial, which has files to close, has noted it
        return None if state == "finished" else "stopped early: others are better"

    def _value(self, name: str) -> float | None:
        path = self.study.folder / self.trials[name].run / "valid.json"
        value = read_report(path).get(CRITERION) if path.exists() else None
        return None if value is None else float(value)
