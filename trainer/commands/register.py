"""Put a run's best model into MLflow's registry, as a new version of a model; any MLflow can load it there.

Example: mealrec register --run demo-mealrec --as videos --alias champion
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from cluster import console
from models.errors import UserError
from trainer.commands.tracker import add_tracker_arguments, prepare_mlflow, tracker_of
from trainer.local_path import local_path, run_place, runs_beside
from trainer.tracking.address import Tracker
from trainer.tracking.model_address import check_alias, check_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec register`."""
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--data", help="where the run's dataset is now (default: its path at training)")
    parser.add_argument("--as", required=True, dest="model", metavar="MODEL", help="name of the model in the registry")
    parser.add_argument("--alias", metavar="NAME", help="alias that then names the new version, such as champion")
    parser.add_argument("--export", type=local_path, metavar="DIR",
                        help="an export of the run, with its indices (default: it is exported anew)")  # fmt: skip
    add_tracker_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Register the model and print how to use it."""
    check_name(args.model, "--as")
    if args.alias:
        check_alias(args.alias)
    run_dir = run_place(args.run, args.runs_dir)
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"there is no run in {run_dir} (no config.yaml): {runs_beside(run_dir)}")
    if args.export is not None:
        _require_of_run(args.export, run_dir.name)
    register_run(
        run_dir, tracker_of(run_dir, args.uri, args.experiment), args.model, args.alias, args.data, args.export
    )
    return 0


def register_run(
    run_dir: Path, where: Tracker, model: str, alias: str | None, data: str | None = None, export: Path | None = None
) -> None:
    """Make the run the next version of `model`, let `alias` name it, and say so. data: where its dataset is now.

    export: of the run; None makes one. Raises UserError.
    """
    prepare_mlflow()
    from trainer.tracking.registry import register, set_alias  # imports MLflow

    with ExitStack() as stack:
        if export is None:
            from trainer.commands.export import export_run

            export = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "export"
            export_run(run_dir, data, export)
        version = register(run_dir, export, where, model)
    if alias:
        set_alias(where, version, alias)
    address = f"models:/{model}" + (f"@{alias}" if alias else f"/{version.number}")
    console.say(f"{run_dir.name} is version {version.number} of {model} in MLflow at {where.shown}")
    console.say(f"serve it: mealrec serve --model {address}")


def _require_of_run(export: Path, run: str) -> None:
    try:
        made_of = json.loads((export / "model.json").read_bytes())["provenance"].get("run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{export} is no export; `mealrec export` makes one") from None
    if made_of != run:
        raise UserError(f"{export} is an export of the run {made_of!r}, not of {run!r}; give the run that it is of")
