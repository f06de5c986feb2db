"""`mealrec train --parallel`: the runs of one command at the same time, as the trials of a study are run."""

from __future__ import annotations

from collections.abc import Sequence

from cluster import console
from cluster.console import Verbosity
from cluster.cores import usable_cores
from models.errors import UserError
from trainer.commands.train_plan import PlannedRun, local_data
from trainer.evaluation.config import CRITERION
from trainer.evaluation.report import read_report


def check_parallel(runs: Sequence[PlannedRun], parallel: int) -> None:
    """Raise UserError unless so many of `runs` can be trained at the same time."""
    if parallel < 1:
        raise UserError(f"--parallel {parallel}: at least one run is trained at a time")
    if len(runs) < 2:
        raise UserError("--parallel: this command trains one run; name several systems (--model a,b) or --seeds")
    config = runs[0].config
    if config.cluster.workers > 1:
        raise UserError("--parallel: each run is one process then; leave cluster.workers at 1")
    if config.cluster.launcher == "inline":
        raise UserError("--parallel needs Ray; leave cluster.launcher at ray")


def train_together(runs: Sequence[PlannedRun], parallel: int, command: str) -> None:
    """Train `runs`, or go on with them, so many at a time; several share a GPU if there are more of them than GPUs.

    What a run prints is in its console.log. Raises UserError, when all others have ended, with the reason of each run
    that failed; Stopped.
    """
    import torch

    from cluster.ray_tune import checked_slots, run_trials
    from cluster.session import connected
    from trainer.study.progress import StudyProgress
    from trainer.study.record import failure, trial_state
    from trainer.study.trial import note_death, run_trial

    folders = {each.name: each.folder for each in runs}
    first = runs[0]

    def value(name: str) -> float | None:
        report = folders[name] / "valid.json"
        return read_report(report).get(CRITERION) if report.exists() else None

    def failed(name: str) -> str | None:
        return failure(folders[name]) if trial_state(folders[name], test=True) == "failed" else None

    with connected(cpus=max(parallel, usable_cores()), gpus=torch.cuda.device_count()):
        first.folder.mkdir(parents=True, exist_ok=True)
        where = checked_slots(parallel, first.config.engine.gpus, first.folder, local_data(first.config))
        threads = max(1, usable_cores() // where.at_once)
        console.say(f"{len(runs)} runs, {where.at_once} at a time; each prints to its console.log", Verbosity.BRIEF)
        progress = StudyProgress(folders, where.at_once, failed, value)
        run_trials(
            run_trial, {each.name: _settings(each, threads, command) for each in runs}, where,
            first.folder / "ray", progress,
        )  # fmt: skip
    for name, death in progress.deaths.items():
        note_death(folders[name], death)
    if reasons := [f"{name}: {why}" for name in folders if (why := failed(name))]:
        raise UserError("\n".join([f"{len(reasons)} of {len(runs)} runs failed; --resume tries them again", *reasons]))


def _settings(run: PlannedRun, threads: int, command: str) -> dict[str, object]:
    config = run.config.model_dump(mode="json")
    config["cluster"]["threads"] = config["cluster"]["threads"] or threads
    return {"config": config, "run_dir": str(run.folder), "command": command, "test": True}
