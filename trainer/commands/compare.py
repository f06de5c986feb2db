"""`mealrec compare`: Compare the metrics of several runs, and test the differences by paired t-tests over users.

Runs whose names differ only in the ending -sSEED (`mealrec train --seeds`) share one row, which shows means over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster import console
from models.errors import UserError
from retrieval.metrics.registry import DEFAULT, MetricChoice
from retrieval.metrics.significance import paired_t_test
from retrieval.metrics.summary import mean_metrics, warm_cold
from trainer.config import recipe
from trainer.config.identity import check_configuration, other_versions
from trainer.evaluation.report import approximate_mark, read_report, recall_warnings, text_table
from trainer.evaluation.run_ranks import SeedGroup, grouped, read_run, require_same_data
from trainer.local_path import local_path
from trainer.tracking.metrics_log import read_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Print the test metrics of runs on the same data: one table that ranks all items, and one that masks the\n"
        "user's own history; both show warm and cold targets separately. Then compare the first run with each other\n"
        "run by paired t-tests over users.\n"
        "Runs NAME-s1, NAME-s2 ... (train --seeds) share one row: mean and standard deviation over seeds."
    )
    parser.epilog = "example:\n  mealrec compare demo-mealrec demo-tedrec demo-sasrec"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a finished run")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR", help="folder of runs")
    parser.add_argument("--metrics", default=",".join(DEFAULT.names), metavar="NAME,...",
                        help="metrics that follow from ranks; the runs need not have reported them "
                        f"({','.join(DEFAULT.names)})")  # fmt: skip
    parser.add_argument("--ks", default=",".join(map(str, DEFAULT.ks)), metavar="K,...",
                        help="lengths of the top lists; the t-tests use the first "
                        f"({','.join(map(str, DEFAULT.ks))})")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the comparison. Raises UserError for a run without test results, or for runs on different data."""
    choice = _choice(args.metrics, args.ks)
    runs = [read_run(args.runs_dir / name) for name in args.runs]
    for other in runs[1:]:
        require_same_data(runs[0], other)
    for warning in _identities([args.runs_dir / name for name in args.runs]):
        console.warn(warning)
    reports = {run.name: read_report(args.runs_dir / run.name / "test.json") for run in runs}
    for warning in recall_warnings(reports):
        console.warn(warning)
    groups = [
        replace(group, name=group.name + approximate_mark([reports[run.name] for run in group.runs]))
        for group in grouped(runs)
    ]
    cold, users = int(runs[0].cold.sum()), len(runs[0].user)
    print(f"{users:,} test users; cold targets (not in any training row): {cold:,} ({100 * cold / users:.1f} %)")
    for title, masked in (("every item ranked", False), ("the user's own history masked", True)):
        print(f"\nTest metrics, {title}")
        print(_metrics_table(groups, masked, choice))
        if len(groups) > 1:
            print(f"\nPaired t-tests, {title}: {groups[0].name} minus each other run")
            print(_tests_table(groups, masked, choice))
    costs = [[group.name, *_cost([args.runs_dir / run.name for run in group.runs])] for group in groups]
    print("\nCost, medians over epochs and runs")
    print(text_table([["run", "seeds", "best epoch", "s/epoch", "peak MiB"], *costs]))
    return 0


def _identities(folders: Sequence[Path]) -> list[str]:
    """What to be aware of when these runs are compared. Raises UserError where a test does not belong to its run."""
    warnings = []
    noted = {folder: read_report(folder / "test.json").get("identity") or {} for folder in folders}
    for folder, each in noted.items():
        path = folder / "config.yaml"
        if not each or not path.exists():
            continue  # tested before this was noted, or only the ranks were copied here
        try:
            config = recipe.load(str(path), None, [], None)
        except UserError:
            warnings.append(f"{path} does not fit this version of MealRec: not compared with the test of {folder.name}")
            continue
        check_configuration(each, config, str(folder), f"{path} has changed since its test; bring it back")
    first, *others = noted.items()
    for folder, each in others:
        for key, what in (("manifest", "data (its content, say)"), ("evaluation", "ways of choosing the best epoch")):
            if key in first[1] and key in each and first[1][key] != each[key]:
                warnings.append(f"{first[0].name} and {folder.name} were trained with different {what}")
        if "versions" in each and (changed := other_versions(first[1], each["versions"])):
            warnings.append(f"{first[0].name} was trained with {changed.replace('(now', f'({folder.name}:')}")
    return warnings


def _choice(metrics: str, ks: str) -> MetricChoice:
    """The metrics to report. Raises UserError for an unknown metric, or one that does not follow from ranks alone."""
    if not all(k.isascii() and k.isdecimal() for k in ks.split(",")):
        raise UserError(f"--ks {ks}: write whole numbers separated by commas, e.g. --ks 1,5,10")
    choice = MetricChoice(tuple(metrics.split(",")), tuple(map(int, ks.split(","))))
    if lists := choice.list_metrics():
        raise UserError(
            f"--metrics {metrics}: {', '.join(lists)} cannot be computed from saved ranks; see test.json of runs that "
            f"were made with it in eval.metrics, or mealrec evaluate --set eval.metrics=[{','.join(lists)}]"
        )
    return choice


def _cost(folders: Sequence[Path]) -> list[str]:
    """Seeds, best epoch, median seconds of a training epoch, and peak memory; "-" where the runs recorded none."""
    best, seconds, peak = [], [], []
    for folder in folders:
        best.append(read_report(folder / "test.json").get("epoch"))
        lines = read_lines(folder / "metrics.jsonl", 0)[0] if (folder / "metrics.jsonl").exists() else []
        seconds += [line["metrics"]["train_seconds"] for line in lines if line["event"] == "epoch"]
        peak += [line["metrics"]["peak_memory_mib"] for line in lines if "peak_memory_mib" in line["metrics"]]
    recorded = [epoch for epoch in best if epoch is not None]
    return [
        str(len(folders)),
        f"{np.median(recorded):.0f}" if recorded else "-",
        f"{np.median(seconds):.2f}" if seconds else "-",
        f"{np.median(peak):,.0f}" if peak else "-",
    ]


def _metrics_table(groups: Sequence[SeedGroup], masked: bool, choice: MetricChoice) -> str:
    rows = [["run", "targets", "users", *choice.keys]]
    for group in groups:
        apart = [warm_cold(run.ranks(masked), run.cold, choice) for run in group.runs]
        every = [mean_metrics(run.ranks(masked), choice) for run in group.runs]
        parts = [
            ("all", len(group.runs[0].user), every),
            ("warm", apart[0].warm.count, [part.warm.metrics for part in apart]),
            ("cold", apart[0].cold.count, [part.cold.metrics for part in apart]),
        ]
        for label, count, metrics in parts:
            figures = [_figure([seed[key] for seed in metrics if seed]) for key in choice.keys]
            rows.append([group.name if label == "all" else "", label, f"{count:,}", *figures])
    return text_table(rows, left=2)


def _figure(values: Sequence[float]) -> str:
    """The mean, and for several seeds also the standard deviation."""
    if not values:
        return "-"
    spread = f" ±{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _tests_table(groups: Sequence[SeedGroup], masked: bool, choice: MetricChoice) -> str:
    rows = [["against", "metric", "difference", "95 % interval", "t", "p", "users"]]
    tested = MetricChoice(tuple(sorted(choice.names, key=lambda name: name != "NDCG")), choice.ks[:1])
    first = groups[0].per_user(masked, tested)
    for other in groups[1:]:
        values = other.per_user(masked, tested)
        for key in tested.keys:
            test = paired_t_test(first[key], values[key])
            interval = f"{test.low:+.4f} .. {test.high:+.4f}"
            figures = [f"{test.mean_difference:+.4f}", interval, f"{test.t:.2f}", f"{test.p:.2g}", f"{test.n:,}"]
            rows.append([other.name, key, *figures])
    return text_table(rows, left=2)
