"""Which MLflow a command talks to, and its options for that."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from trainer.tracking import ENVIRONMENT
from trainer.tracking.address import Tracker, default_uri, tracker
from trainer.tracking.describe import read_config
from trainer.tracking.state import read_state


def add_tracker_arguments(parser: argparse.ArgumentParser) -> None:
    """--uri and --experiment."""
    parser.add_argument("--uri", metavar="URI", help="address of MLflow (the one training mirrored the run to)")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment (the one of the run)")


def tracker_of(run_dir: Path, uri: str | None, experiment: str | None) -> Tracker:
    """Where training mirrored the run to, or would now; what the command line names goes before."""
    before, config = read_state(run_dir), read_config(run_dir).get("tracking") or {}
    name = experiment or before.get("experiment") or config.get("experiment") or ""
    now = tracker(run_dir, uri or config.get("uri") or "", name)
    if uri or not before or before["uri"] == now.shown:  # of the address in mlflow.json a password is left out
        return now
    return tracker(run_dir, before["uri"] or default_uri(run_dir), name)


def prepare_mlflow() -> None:
    """Settings of MLflow for this process, before it is imported; what the user's environment sets goes before."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
