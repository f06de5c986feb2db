"""`mealrec track`: Send to MLflow what it does not have yet of a run that has ended."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster import console
from models.errors import UserError
from retrieval.disk import disk_trouble
from trainer.commands.tracker import add_tracker_arguments, tracker_of
from trainer.local_path import local_path, run_place, runs_beside
from trainer.tracking import REFUSED, start_mirror, where_runs_are
from trainer.tracking.address import sqlite_path
from trainer.tracking.metrics_log import read_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Send to MLflow what it does not have yet of a run that has ended: parameters, metrics, artifacts, status.\n"
        "If training already began an MLflow run, that one is continued; no point is sent twice."
    )
    parser.epilog = "example:\n  mealrec track --run demo-mealrec"
    parser.add_argument("--run", required=True, metavar="RUN", help="name of the run")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR", help="folder of runs")
    add_tracker_arguments(parser)
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds to try for (300)")


def run(args: argparse.Namespace) -> int:
    """Send what is missing and print the result; 0 if MLflow has everything. Raises UserError otherwise."""
    run_dir = run_place(args.run, args.runs_dir)
    metrics = run_dir / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"there is no run in {run_dir} (no {metrics.name}): {runs_beside(run_dir)}")
    where = tracker_of(run_dir, args.uri, args.experiment)
    lines, _ = read_lines(metrics, 0)
    ended = bool(lines) and lines[-1]["event"] == "end"
    started = time.monotonic()
    mirror = start_mirror(run_dir, where.uri, where.experiment, running=False, warn=_warn)
    if not mirror.close(args.timeout, "FINISHED" if ended else "FAILED"):
        for place in (run_dir, sqlite_path(where.uri)):
            if place and (full := disk_trouble(OSError(mirror.told), place)):  # a full disk is seen by its free space
                raise UserError(full)
        if mirror.told.startswith(REFUSED):
            raise UserError(f"{mirror.told}; {run_dir / 'mlflow.log'} says more")
        raise UserError(
            f"MLflow at {where.shown} did not take everything within {time.monotonic() - started:.0f} s; "
            f"{run_dir / 'mlflow.log'} says more. "
            "Check that it answers and that the run is not being trained at the moment, then try again."
        )
    console.say(f"MLflow at {where.shown} has all {len(lines)} lines of {metrics}")
    console.say(f"the runs in MLflow\n{where_runs_are(run_dir, where.uri, where.experiment)}")
    return 0


def _warn(message: str) -> None:
    """What is tried again is told at once; a refusal is the error that this command ends with."""
    if not message.startswith(REFUSED):
        console.warn(message)
