"""Train one system, or several to compare, on a prepared dataset.

Example: mealrec train --data data/demo --name first
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import console, preemption
from cluster.console import Verbosity
from cluster.ray_train import fit
from cluster.scaling import Workers
from models.errors import UserError
from retrieval.disk import told_of_disk
from retrieval.files import sole_writer
from trainer.commands.train_closing import closing
from trainer.commands.train_plan import COMPARISON, PlannedRun, check_more_epochs, check_name, local_data, make_plan
from trainer.commands.train_together import check_parallel, train_together
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.durations import in_words
from trainer.evaluation.report import metric_table, read_report, recall_warnings
from trainer.remote_runs import runs_dir, storage_of
from trainer.tracking import where_runs_are, write_group
from trainer.tracking.metrics_log import read_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec train`, and of `python trainer/run.py` in a Ray job."""
    parser.add_argument("--recipe", default="default", help=f"{', '.join(recipe.names())}, or the path of a .yaml file "
                        "(default: default, which chooses by the size of the dataset)")  # fmt: skip
    parser.add_argument("--data", help="prepared dataset, a folder or URL (default: the recipe's data.path)")
    parser.add_argument("--name", required=True, help="name of the run; results go to RUNS_DIR/NAME")
    parser.add_argument("--model", help="system to train; for several, separated by commas, the runs are called "
                        "NAME-SYSTEM and share one table (default: the recipe's, else those of "
                        f"{', '.join(map(str, COMPARISON))} that the dataset has content for)")  # fmt: skip
    parser.add_argument("--seeds", help="train each system once per seed, e.g. 2020,2021,2022; the runs are called "
                        "NAME-sSEED, and `mealrec compare` shows their mean and standard deviation")  # fmt: skip
    parser.add_argument("--parallel", type=int, metavar="N", help="with several systems or seeds: train N at a time, "
                        "each in one process; if N is more than there are GPUs, some share one (default: one after "
                        "the other)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings",
                        help="override one setting (mealrec settings lists them); may be repeated")  # fmt: skip
    parser.add_argument("--runs-dir", type=runs_dir, default=Path("runs"),
                        help="folder of runs, or its s3:// or gs:// URL (default: runs)")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the run of this name")


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked without torch, train the systems, say which to keep."""
    plan = make_plan(args)
    if args.parallel is not None:
        check_parallel(plan.runs, args.parallel)
    for each in plan.runs:
        if storage := storage_of(each.folder):
            storage.begin(args.resume)
        check_name(each.name, each.folder, args.resume)
        check_more_epochs(each.config, each.folder)
    if args.resume and not any((each.folder / "config.yaml").exists() for each in plan.runs):
        raise UserError(f"nothing to resume: there is no run in {plan.runs[0].folder}")
    several = len(plan.runs) > 1
    if several:
        write_group(args.name, [each.folder for each in plan.runs])
    for line in plan.told:
        console.say(line, Verbosity.BRIEF)
    with preemption.listening():
        if args.parallel is not None:
            train_together(plan.runs, args.parallel, args.command_line)
        else:
            _train_in_turn(plan.runs, args.command_line)
    reports = {each.name: read_report(each.folder / "test.json") for each in plan.runs}
    print(metric_table(reports, plan.runs[0].config.eval.choice.keys), flush=True)
    for warning in recall_warnings(reports):
        console.warn(warning)
    last = plan.runs[-1]
    if storage := storage_of(last.folder):
        console.say(f"the runs are stored at {storage.root}", Verbosity.BRIEF)
    tracking = last.config.tracking
    if tracking.mlflow and (page := where_runs_are(last.folder, tracking.uri, tracking.experiment)):
        console.say(f"\nthe runs in MLflow\n{page}", Verbosity.BRIEF)
    console.say(closing(plan.runs, reports), Verbosity.BRIEF)
    return 0


def _train_in_turn(runs: Sequence[PlannedRun], command: str) -> None:
    for each in runs:
        if len(runs) > 1:
            console.say(f"\n== {each.name}")
        with told_of_disk(each.folder):
            train_one(each.name, each.config, each.folder, command)


def train_one(name: str, config: RunConfig, run_dir: Path, command: str) -> None:
    """Train one run, or continue it from the last checkpoint in its folder. command: heads its config.yaml.

    Raises UserError, Stopped, WorkerFailed.
    """
    from trainer.training.worker import train_worker  # only after all checks, so that mistakes are reported at once

    started = time.perf_counter()
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole_writer(run_dir):  # a second command is refused before its workers start; the first worker writes
        pass
    settings: dict[str, Any] = {
        "config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": command,
    }  # fmt: skip
    # fitting a baseline takes seconds, less than the start of workers
    if config.cluster.launcher == "inline" or not config.model.options.trained:
        train_worker(settings)
    else:
        fit(train_worker, settings, _workers(config), name="ray", storage=run_dir, folders=local_data(config))
    seconds = time.perf_counter() - started
    if console.shows(Verbosity.NORMAL):
        console.say(f"{name}: done in {seconds:.0f} s, results in {run_dir}")
    else:
        console.say(f"{name}: {summary(run_dir, config)}, {in_words(seconds)}", Verbosity.BRIEF)


def _workers(config: RunConfig) -> Workers:
    import torch

    of = config.cluster
    return Workers(
        of.workers, of.workers_at_least, gpus=config.engine.gpus, gpus_here=torch.cuda.device_count(),
        max_failures=of.max_failures, scale_up_s=of.scale_up_s,
    )  # fmt: skip


def summary(run_dir: Path, config: RunConfig) -> str:
    """A finished run in a few words: its first NDCG on the validation targets (else its first metric), its epochs.

    Not on the test targets: what is read first is what people choose by.
    """
    report, keys = read_report(run_dir / "valid.json"), config.eval.choice.keys
    key = next((each for each in keys if each.startswith("NDCG")), keys[0])
    epochs = sum(line["event"] == "epoch" for line in read_lines(run_dir / "metrics.jsonl", 0)[0])
    how = f"best epoch {report['epoch']} of {epochs}" if epochs else "fitted"
    return f"validation {key} {report[key]:.4f} ({how})"
