"""`mealrec compare`: Compare the metrics of runs, and test their differences over users and over seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster import console
from models.errors import UserError
from retrieval.metrics.registry import METRICS, MetricChoice
from trainer.comparison.advice import advice
from trainer.comparison.choose import Chosen, choose
from trainer.comparison.differences import Differences
from trainer.comparison.figures import Comparison, best, cost, ranking
from trainer.comparison.formats import FORMATS
from trainer.comparison.published.beside import beside, manifest_of
from trainer.comparison.runs import FinishedRun, evaluated_with, read_runs, warnings
from trainer.comparison.seeds import System, join
from trainer.comparison.tables import GAIN, P_VALUES, STAR
from trainer.evaluation.report import approximate_mark
from trainer.local_path import local_path
from trainer.remote_runs import bring_all, runs_dir

_TITLES = {"all": "every item ranked", "masked": "the user's own history masked"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Print the test metrics of runs on the same data, the best NDCG@10 first: one table that ranks all items, and\n"
        "one that masks the user's own history; both show warm and cold targets apart. Tests and effect sizes compare\n"
        "the system that the first RUN names (the best one, if that names several) with each other.\n"
        "Runs whose settings, data and evaluation are equal but for the seed share a row, whatever their names:\n"
        "mean and standard deviation over seeds."
    )
    parser.epilog = (
        "examples:\n"
        "  mealrec compare demo\n"
        "  mealrec compare demo-mealrec demo-tedrec demo-sasrec --ks 1,5,10\n"
        "  mealrec compare runs/demo-mealrec runs/demo-sasrec --format latex"
    )
    parser.add_argument("runs", nargs="*", type=local_path, metavar="RUN",
                        help="name or folder of a finished run; NAME for all runs that train --name NAME made "
                        "(NAME-SYSTEM, NAME-SYSTEM-sSEED, NAME-sSEED); or a folder, for every run in it "
                        "(default: all of --runs-dir)")  # fmt: skip
    parser.add_argument("--runs-dir", type=runs_dir, default=Path("runs"), metavar="DIR",
                        help="folder of runs, or its s3:// or gs:// URL (default: runs)")  # fmt: skip
    parser.add_argument("--format", choices=list(FORMATS), default="text",
                        help="how to print it; csv has a line for each figure; latex needs no package, and uses "
                        "booktabs if the document does (default: text)")  # fmt: skip
    parser.add_argument("--metrics", metavar="NAME,...",
                        help="metrics that follow from ranks; the runs need not have reported them (default: "
                        "eval.metrics of the runs)")  # fmt: skip
    parser.add_argument("--ks", metavar="K,...",
                        help="lengths of the top lists; the tests use 10 if it is among them, else the first "
                        "(default: eval.ks of the runs)")  # fmt: skip
    parser.add_argument("--published", action="store_true",
                        help="show the figures of the paper's Tables 2 and 3 beside these, where the dataset is the "
                        "same; else a note says how it differs")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the comparison. Raises UserError for a run without test results, or for runs on different data."""
    if args.metrics or args.ks:
        _choice(args.metrics, args.ks, [])  # a mistake is told before the runs are read
    bring_all(args.runs_dir)
    chosen = choose(args.runs, args.runs_dir)
    runs = read_runs(chosen.folders)
    choice = _choice(args.metrics, args.ks, runs)
    _require_depth(runs, choice)
    for warning in warnings(runs):
        console.warn(warning)
    joined, notes = join(runs)
    systems = [_marked(system) for system in joined]
    comparison = _compare(systems, _reference(systems, chosen), choice, [*chosen.notes, *notes])
    if args.published:
        tables, notes = beside(systems, comparison.rankings["all"], comparison.costs, *manifest_of(runs))
        comparison = replace(comparison, published=tables, notes=[*comparison.notes, *notes])
    print(FORMATS[args.format](comparison))
    if args.format == "csv":
        for note in comparison.notes:
            print(note, file=sys.stderr)
    if lines := advice(best(systems), args.runs, args.runs_dir):
        print("", *lines, sep="\n", file=sys.stderr)
    return 0


def _marked(system: System) -> System:
    """The system, its label marked if an approximate index ranked any of its runs."""
    return replace(system, label=system.label + approximate_mark([run.report for run in system.runs]))


def _compare(systems: Sequence[System], reference: System, choice: MetricChoice, notes: Sequence[str]) -> Comparison:
    ranks = systems[0].runs[0].ranks
    rankings = {name: ranking(title, systems, reference, name == "masked", choice) for name, title in _TITLES.items()}
    ordered = best(systems)
    about = [*notes, *_about(ordered, reference, [each.differences for each in rankings.values()])]
    return Comparison(
        len(ranks.user), int(ranks.cold.sum()), choice.keys, ordered, rankings, [cost(each) for each in ordered], about
    )


def _about(systems: Sequence[System], reference: System, found: Sequence[Differences]) -> list[str]:
    """What the tables do not show of themselves."""
    about = []
    if one := [system.label for system in systems if system.seed_count == "one"]:
        about.append(f"one seed, so the spread over seeds is unknown: {', '.join(one)}")
    if len(systems) > 1:
        about.append(f"{GAIN}: of {reference.label}, relative to the best other system in each metric")
        if len(reference.runs[0].ranks.user) == 1:
            about.append("no test over users: there is one test user, and it needs two or more")
    if any(each.starred for each in found):
        about.append(STAR)
    if any(each.over_users or each.over_seeds for each in found):
        about.append(P_VALUES)
    if any(each.signed_ranks < len(each.over_users) for each in found):
        about.append("no Wilcoxon between means over different numbers of seeds, whose differences are skewed")
    return about


def _reference(systems: Sequence[System], chosen: Chosen) -> System:
    """The system to test against the others: the one that the first argument stands for, else the best."""
    named = [system for system in systems if {run.folder for run in system.runs} & set(chosen.first)]
    return named[0] if len(named) == 1 else best(systems)[0]


def _choice(metrics: str | None, ks: str | None, runs: Sequence[FinishedRun]) -> MetricChoice:
    """The metrics to report: as asked, else what the runs were evaluated with.

    Raises UserError for an unknown metric, or one that does not follow from ranks alone.
    """
    if ks and not all(k.isascii() and k.isdecimal() for k in ks.split(",")):
        raise UserError(f"--ks {ks}: write whole numbers separated by commas, e.g. --ks 1,5,10")
    used = evaluated_with(runs)
    choice = MetricChoice(
        tuple(metrics.split(",")) if metrics else used.names, tuple(map(int, ks.split(","))) if ks else used.ks
    )
    if lists := choice.list_metrics():
        known = ", ".join(name for name in METRICS if name not in MetricChoice(tuple(METRICS)).list_metrics())
        raise UserError(
            f"--metrics {metrics}: {', '.join(lists)} cannot be computed from saved ranks ({known} can); see test.json "
            f"of runs that were made with it in eval.metrics, or mealrec evaluate --run RUN "
            f"--set eval.metrics=[{','.join(lists)}]"
        )
    return choice


def _require_depth(runs: Sequence[FinishedRun], choice: MetricChoice) -> None:
    """Raise UserError if an index did not search as far as a k, beyond which every target would count as missed."""
    for run in runs:
        depth = (run.report.get("index") or {}).get("depth")
        if depth is not None and max(choice.ks) > depth:
            raise UserError(
                f"{run.name} was ranked by an index that returned {depth} items, so metrics at {max(choice.ks)} are "
                f"not known; use --ks {depth} or less"
            )
