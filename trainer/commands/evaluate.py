"""Evaluate a run's best checkpoint again, with exact ranking or a FAISS index.

Example: mealrec evaluate --run demo-mealrec --set eval.index=hnsw
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster import console
from models.errors import UserError
from retrieval.files import write_json
from retrieval.folders import writable_file
from trainer.config import recipe
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.report import how_ranked, metric_table, read_report, recall_warnings
from trainer.local_path import local_path
from trainer.remote_runs import runs_dir
from trainer.training.build import as_tested
from trainer.training.runs import open_run, run_folder
from trainer.training.worker import evaluate_choices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec evaluate`."""
    parser.add_argument("--run", required=True, help="name or folder of a run")
    parser.add_argument("--runs-dir", type=runs_dir, default=Path("runs"),
                        help="folder of runs, or its s3:// or gs:// URL (default: runs)")  # fmt: skip
    parser.add_argument("--data", help="where the run's dataset is now (default: its path at training)")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--set", action="append", default=[], metavar="eval.KEY=VALUE", dest="settings",
                        help="change how to rank and what to report, e.g. eval.index=flat, eval.metrics=[HR,MRR], "
                        "eval.ks=[1,5,10]")  # fmt: skip
    parser.add_argument("--out", type=local_path, help="write the full report as JSON to this file")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; the run folder is not changed."""
    out = writable_file(args.out) if args.out else None  # before the work, not after
    folder = run_folder(args.run, args.runs_dir)
    if others := [setting for setting in args.settings if not setting.startswith("eval.")]:
        raise UserError(f"--set {others[0]}: only eval.* can change after training")
    opened = open_run(folder, args.data)
    config = recipe.load(str(folder / "config.yaml"), None, args.settings, args.data)
    opened.model.inference = _chosen(folder) or evaluate_choices(opened.model, opened.loaded, config)[1]
    result = evaluate(
        *as_tested(opened.model, opened.loaded, config, args.split), args.split, config.eval, with_lists=True
    )
    report = {**result.report(), "inference": opened.model.inference, "epoch": opened.epoch}
    print(metric_table({folder.name: report}, config.eval.choice.keys, args.split))
    print(f"\nhistory masked: {_line(report['masked'])}")
    for group in ("warm", "cold"):
        print(f"{group} targets ({report[group]['users']:,} users): {_line(report[group])}")
    if result.index:
        print(how_ranked(result.index))
    for warning in recall_warnings({folder.name: report}):
        console.warn(warning)
    console.say(f"{len(result.user):,} users in {result.seconds:.1f} s, users encoded by: {opened.model.inference}")
    if out:
        write_json(out, report)
    return 0


def _chosen(folder: Path) -> str | None:
    """The way of encoding users that training chose on validation; None if the run is not finished."""
    path = folder / "valid.json"
    return str(read_report(path)["inference"]) if path.exists() else None


def _line(metrics: dict[str, float]) -> str:
    shown = [f"{name} {value:.4f}" for name, value in metrics.items() if "@" in name]
    return " ".join(shown) or "none"
