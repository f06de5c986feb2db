"""`mealrec track`: bring MLflow up to date with a run whose mirror could not finish."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.errors import UserError
from trainer.local_path import local_path
from trainer.tracking import start_mirror
from trainer.tracking.metrics_log import read_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Post to MLflow what it does not have yet of a run that has ended: parameters, metrics, artifacts, status.\n"
        "The MLflow run is the one that training began, if it began one; no point is posted twice."
    )
    parser.epilog = "example:\n  mealrec track --run demo-mealrec"
    parser.add_argument("--run", required=True, metavar="RUN", help="name of the run")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR", help="folder of runs")
    parser.add_argument("--uri", metavar="URI", help="tracking URI (the run's, or mlflow.db beside the runs)")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment (the one of the run, or mealrec)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds to try for (300)")


def run(args: argparse.Namespace) -> int:
    """Sync and say how it went; 0 if MLflow has everything. Raises UserError otherwise."""
    run_dir: Path = args.runs_dir / args.run
    metrics = run_dir / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"there is no run {args.run!r}: {metrics} does not exist; name a folder of {args.runs_dir}")
    mirrored: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        mirrored = json.loads((run_dir / "mlflow.json").read_bytes())
    uri = args.uri or mirrored.get("uri") or f"sqlite:///{args.runs_dir.absolute().parent / 'mlflow.db'}"
    lines, _ = read_lines(metrics, 0)
    ended = bool(lines) and lines[-1]["event"] == "end"
    mirror = start_mirror(run_dir, uri, args.experiment or mirrored.get("experiment") or "mealrec")
    if not mirror.close(args.timeout, "FINISHED" if ended else "FAILED"):
        raise UserError(
            f"MLflow at {uri} did not take everything within {args.timeout:g} s; {run_dir / 'mlflow.log'} says why. "
            "Check that it answers and that the run is not being trained at the moment, then try again."
        )
    print(f"MLflow at {uri} has all {len(lines)} lines of {metrics}")
    return 0
