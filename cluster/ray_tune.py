"""Run a function on many inputs, as trials of Ray Tune: few processes serve many trials; one that fails ends no other.

This module knows no models and no data. What a trial does, and how it goes on after it was interrupted, is up to the
function.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster import console, preemption
from cluster.failures import PreflightError, Stopped
from cluster.preflight import check_cluster

#: tells the scheduler the epoch and the value to be made large; returns whether the trial may go on
Report = Callable[[int, float], bool]
Work = Callable[[dict[str, Any], Report], None]

_TRIAL, _EPOCH, _VALUE = "trial", "epoch", "value"
#: a file in the folder of Ray's files: the driver was told to end, and ends all trials
_ENDED = "told-to-end"
#: a stopped trial closes its files and trackers before its process takes the next one
_CLOSING_S = 90
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we write what a trial reports ourselves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once: trials go on from their checkpoints
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its callback cannot be replaced
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # do not start processes for trials before one is free
}


@dataclass(frozen=True)
class Slots:
    """at_once: trials that run at the same time. cpus, gpus: of each; a part of a GPU is shared with other trials.
    fresh: each trial has a process of its own, for figures of memory, which a process never gives back wholly."""

    at_once: int
    cpus: float
    gpus: float
    fresh: bool = False


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving: from `grace` epochs on, only the better third of the trials goes on.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
    """

    epochs: int
    grace: int


class Watcher(Protocol):
    """Is told in the driver what happens to trials, by their names."""

    def started(self, name: str) -> None:
        """A process has taken the trial."""

    def reported(self, name: str, epoch: int, value: float) -> None:
        """The trial has finished an epoch."""

    def ended(self, name: str, error: str | None) -> None:
        """The trial has ended; error: says why, if its process died or raised."""


def slots(at_once: int | None, *, gpus: bool | None, total: Mapping[str, float]) -> Slots:
    """How many trials run at once on what Ray's nodes have together, e.g. {"CPU": 8.0, "GPU": 2.0}.

    at_once: as the user asked; None takes one for each GPU, else one for each CPU. gpus: None uses GPUs if there are
    any. Raises PreflightError if GPUs are wanted and there is none, or there are more trials than CPUs.
    """
    cpus, there = total.get("CPU", 1.0), total.get("GPU", 0.0)
    if gpus and not there:
        raise PreflightError("engine.device=cuda, but no node of Ray has a GPU; use engine.device=cpu or auto")
    used = there if gpus is not False else 0.0
    at_once = at_once or int(used or cpus)
    if at_once > cpus:
        raise PreflightError(f"--parallel {at_once}: Ray's nodes have {cpus:g} CPUs, and each trial needs one")
    # an even share of each GPU, rounded down: as many trials as fit on one
    share = min(1.0, 1 / -(-at_once // int(used))) if used else 0.0
    return Slots(at_once, float(max(1, cpus // at_once)), share)


def checked_slots(at_once: int | None, gpus: bool | None, run_folder: Path, folders: Sequence[Path]) -> Slots:
    """`slots` of the Ray that this process is connected to, after the checks of `cluster.preflight.check_cluster`."""
    import ray

    where = slots(at_once, gpus=gpus, total=ray.cluster_resources())
    check_cluster(where.at_once, gpus=False, cpus_per_worker=where.cpus, run_folder=run_folder, folders=folders)
    return where


def run_trials(
    work: Work,
    trials: Mapping[str, dict[str, Any]],
    where: Slots,
    storage: Path,
    watcher: Watcher,
    halving: Halving | None = None,
) -> None:
    """Call `work(input, report)` for each of `trials` (name -> input), on the Ray that this process is connected to.

    The input gets "device": "cuda" or "cpu". `work` is a module-level function. If its process dies, it is called once
    more. storage: a folder for Ray's own files, which every node sees. halving: stops trials that others are better
    than, by the answer of `report`. Raises Stopped after SIGTERM; trials that ran then go on from what they saved.
    """
    os.environ.update(_TUNE_SETTINGS)
    from ray import tune

    level = console.library_level(logging.CRITICAL)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(level)
    names = list(trials)
    device = "cuda" if where.gpus else "cpu"
    inputs = {name: {**trials[name], "device": device} for name in names}
    ended = storage / _ENDED
    ended.unlink(missing_ok=True)

    def trainable(config: dict[str, Any]) -> None:
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(_CLOSING_S)  # read in this process, when a trial is stopped
        report = _Reporter(tune.report, ended)
        work(inputs[config[_TRIAL]], report)
        if report.stopped:
            sys.exit()  # what Tune waits for: after a plain return it would wait for one more report

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": where.cpus, "gpu": where.gpus}),
        param_space={_TRIAL: tune.grid_search(names)},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(halving), max_concurrent_trials=where.at_once, reuse_actors=not where.fresh,
            trial_name_creator=_name_of, trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=storage.name, storage_path=str(storage.parent.absolute()), verbose=0,
            failure_config=tune.FailureConfig(max_failures=1), callbacks=[_callback(watcher, ended)],
        ),
    )  # fmt: skip
    # Ray has set its own handler of SIGTERM when it connected. Ours only notes it: an exception out of a handler would
    # meet Ray's code, which cannot pass it on
    with preemption.listening(), preemption.held():
        tuner.fit()


def one_after_the_other(work: Work, trials: Mapping[str, dict[str, Any]], watcher: Watcher) -> None:
    """`run_trials` in this process, without Ray: no trial is stopped early, and a process that dies ends all."""
    for name, content in trials.items():

        def report(epoch: int, value: float, name: str = name) -> bool:
            watcher.reported(name, epoch, value)
            return True

        watcher.started(name)
        work(content, report)
        watcher.ended(name, None)


class _Reporter:
    """A `Report` to Tune. stopped: whether its scheduler has stopped the trial.

    Tune also ends a trial when the driver ends, in the same way. Then the file `ended` is there: the trial goes on
    another time, so it must not take this for a decision about it.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], ended: Path) -> None:
        self._tell, self._ended = tell, ended
        self.stopped = False

    def __call__(self, epoch: int, value: float) -> bool:
        try:
            self._tell({_EPOCH: epoch, _VALUE: value})
        except SystemExit:  # how Tune ends a trial that its scheduler stops: the trial has work to finish
            if self._ended.exists():
                raise
            self.stopped = True
        return not self.stopped


def _scheduler(halving: Halving | None) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if halving is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=_EPOCH, metric=_VALUE, mode="max", max_t=halving.epochs + 1, grace_period=halving.grace,
        reduction_factor=3,
    )  # fmt: skip


def _name_of(trial: Any) -> str:
    return str(trial.config[_TRIAL])


def _callback(watcher: Watcher, ended: Path) -> Any:
    from ray.tune.progress_reporter import TrialProgressCallback

    # instead of Tune's own, which would print; Tune gives every argument by name
    class Telling(TrialProgressCallback):  # type: ignore[misc]
        def on_step_begin(self, **_: Any) -> None:  # several times a second
            if preemption.noticed():
                ended.parent.mkdir(parents=True, exist_ok=True)
                ended.touch()  # before Tune ends the trials that run
                raise Stopped("stopped by SIGTERM; what was saved is kept: the same command with --resume goes on")

        def on_trial_start(self, trial: Any, **_: Any) -> None:
            watcher.started(_name_of(trial))

        def on_trial_result(self, trial: Any, result: Any, **_: Any) -> None:
            if _EPOCH in result:
                watcher.reported(_name_of(trial), int(result[_EPOCH]), float(result[_VALUE]))

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            watcher.ended(_name_of(trial), None)

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            watcher.ended(_name_of(trial), _last_line(trial))

    return Telling()


def _last_line(trial: Any) -> str:
    """What Tune noted of a trial whose process failed, in one line."""
    said = str(trial.get_error() or "").strip().splitlines()
    return said[-1] if said else "its process ended"
