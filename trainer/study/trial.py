"""One trial, in the process that runs it: train, note how it ended, tell the scheduler of each epoch."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO, cast

import torch

from cluster import console
from cluster.failures import Stopped
from cluster.ray_tune import Report
from models.errors import UserError
from retrieval.files import write_json
from trainer.evaluation.config import CRITERION
from trainer.process import out_of_memory, peak_memory_mib
from trainer.study.record import trial_state
from trainer.tracking.metrics_log import read_lines
from trainer.tracking.study_files import FAILURE, STOPPED
from trainer.training.build import choose_device
from trainer.training.worker import train_worker

CONSOLE = "console.log"


def run_trial(trial: dict[str, Any], report: Report) -> None:
    """Train the run of a trial, or go on with it. trial: the settings of `train_worker`.

    A failure is noted in the run's folder and not raised: other trials go on. What the run prints is in its
    console.log. A scheduler that has forgotten the epochs of an earlier sitting is told of them first.
    """
    folder = Path(trial["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    for epoch, value in _earlier(folder):
        if not report(epoch, value):
            note_stopped(folder)
            return
    if trial_state(folder, bool(trial["test"])) in ("finished", "stopped"):
        return
    (folder / FAILURE).unlink(missing_ok=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stopped = False

    def epoch_done(epoch: int, value: float) -> None:
        nonlocal stopped
        if not report(epoch, value):
            stopped = True
            raise Stopped(f"stopped after epoch {epoch}: other trials of the search are better")

    try:
        with _printing_to(folder / CONSOLE):
            train_worker(trial, epoch_done)
    except Stopped:
        if not stopped:
            raise
        note_stopped(folder)
    except Exception as error:
        _note_failure(folder, error, choose_device(trial.get("device") or trial["config"]["engine"]["device"]))


def note_death(folder: Path, why: str) -> None:
    """Note that the process of the trial in `folder` ended without a word, unless something is noted already."""
    if trial_state(folder, test=False) == "unfinished":
        _write_failure(folder, "WorkerDied", f"its process ended (killed, or out of memory?): {why}", None)


def _earlier(folder: Path) -> Iterator[tuple[int, float]]:
    """The epochs of earlier sittings with their validation: what is recorded, up to the last one."""
    path = folder / "metrics.jsonl"
    lines = read_lines(path, 0)[0] if path.exists() else []
    for line in lines:
        if line["event"] == "epoch" and CRITERION in line["metrics"].get("valid", {}):
            yield line["epoch"], line["metrics"]["valid"][CRITERION]


def note_stopped(folder: Path) -> None:
    """Note that the scheduler stopped the trial in `folder`. Its metrics.jsonl says after which epoch."""
    write_json(folder / STOPPED, {"by": "scheduler"})


def _note_failure(folder: Path, error: Exception, device: torch.device) -> None:
    kind, message = type(error).__name__, str(error)
    peak: float | None = None
    if out_of_memory(error):
        kind, peak = "OutOfMemoryError", peak_memory_mib(device)
        message = f"out of memory: it had {peak:,.0f} MiB at most ({message.splitlines()[0][:200]})"
    if not isinstance(error, UserError):
        with (folder / CONSOLE).open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
    _write_failure(folder, kind, message, peak)


def _write_failure(folder: Path, kind: str, message: str, peak: float | None) -> None:
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(folder / FAILURE, {"message": message, "kind": kind, "peak_memory_mib": peak, "when": when})


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """In the block, what this process prints goes to the end of the file at `path`."""
    with path.open("a", encoding="utf-8", buffering=1) as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        before = sys.stdout
        sys.stdout = cast(TextIO, console.Harmless(file))  # a user looks at the file in a terminal
        try:
            with console.of_a_worker():
                yield
        finally:
            sys.stdout = before
