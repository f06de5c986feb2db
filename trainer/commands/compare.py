"""`mealrec compare`: metrics of several runs side by side, and paired t-tests over their users.

Runs that differ in nothing but the end of their name, -sSEED (`mealrec train --seeds`), are one row: means over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.metrics.base import METRIC_KEYS, Ranks, mean_metrics, paired_t_test, per_user, warm_cold
from trainer.evaluation.report import text_table
from trainer.tracking.metrics_log import read_lines

TESTED = ("NDCG@10", "HR@10")
#: test.json may be rounded; a figure of other ranks differs by more (one user of 10,000 moves HR@10 by 1e-4)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class RunRanks:
    """Test ranks of one run, by ascending user: user, target, rank, rank_masked (U,) integers; cold (U,) bool."""

    name: str
    user: NDArray[np.integer[Any]]
    target: NDArray[np.integer[Any]]
    rank: Ranks
    rank_masked: Ranks
    cold: NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Runs of one system that differ in their seed alone; most groups are of one run."""

    name: str
    runs: list[RunRanks]

    def per_user(self, masked: bool) -> dict[str, NDArray[np.float64]]:
        """Metrics of each user, means over seeds."""
        values = [per_user(_ranks(run, masked)) for run in self.runs]
        return {key: np.mean([each[key] for each in values], axis=0) for key in METRIC_KEYS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Print the test metrics of runs on the same data: one table with every item ranked, one with the user's own\n"
        "history masked, cold targets apart; then the first run against each other one, by paired t-tests over users.\n"
        "Runs NAME-s1, NAME-s2 ... (train --seeds) are joined: mean and standard deviation over seeds."
    )
    parser.epilog = "example:\n  mealrec compare demo-mealrec demo-tedrec demo-sasrec"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run that was tested")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")


def run(args: argparse.Namespace) -> int:
    """Print the comparison. Raises UserError for a run without a test, or runs on different data."""
    runs = [read_run(args.runs_dir / name) for name in args.runs]
    for other in runs[1:]:
        _require_same_data(runs[0], other)
    groups = grouped(runs)
    cold, users = int(runs[0].cold.sum()), len(runs[0].user)
    print(f"{users:,} test users; cold targets (not in any training row): {cold:,} ({100 * cold / users:.1f} %)")
    for title, masked in (("every item ranked", False), ("the user's own history masked", True)):
        print(f"\nTest metrics, {title}")
        print(_metrics_table(groups, masked))
        if len(groups) > 1:
            print(f"\nPaired t-tests, {title}: {groups[0].name} minus each other run")
            print(_tests_table(groups, masked))
    costs = [[group.name, *_cost([args.runs_dir / run.name for run in group.runs])] for group in groups]
    print("\nCost, medians over epochs and runs")
    print(text_table([["run", "seeds", "best epoch", "s/epoch", "peak MiB"], *costs]))
    return 0


def grouped(runs: Sequence[RunRanks]) -> list[Group]:
    """Runs joined by the name before -sSEED, in the order of their first run."""
    groups: dict[str, list[RunRanks]] = {}
    for entry in runs:
        groups.setdefault(re.sub(r"-s\d+$", "", entry.name), []).append(entry)
    return [Group(name if len(same) > 1 else same[0].name, same) for name, same in groups.items()]


def _cost(folders: Sequence[Path]) -> list[str]:
    """Seeds, best epoch, median seconds of a training epoch, and peak memory, as far as the runs tell."""
    best, seconds, peak = [], [], []
    for folder in folders:
        best.append(json.loads((folder / "test.json").read_bytes()).get("epoch"))
        lines = read_lines(folder / "metrics.jsonl", 0)[0] if (folder / "metrics.jsonl").exists() else []
        seconds += [line["metrics"]["train_seconds"] for line in lines if line["event"] == "epoch"]
        peak += [line["metrics"]["peak_memory_mib"] for line in lines if "peak_memory_mib" in line["metrics"]]
    told = [epoch for epoch in best if epoch is not None]
    return [
        str(len(folders)),
        f"{np.median(told):.0f}" if told else "-",
        f"{np.median(seconds):.2f}" if seconds else "-",
        f"{np.median(peak):,.0f}" if peak else "-",
    ]


def read_run(folder: Path) -> RunRanks:
    """The test ranks in `folder`, checked against its test.json. Raises UserError naming the file that is wrong."""
    path = folder / "ranks-test.npz"
    arrays = _read_arrays(path)
    integers = [arrays[name] for name in ("user", "target", "rank", "rank_masked")]
    same_length = len({array.shape for array in arrays.values()}) == 1 and arrays["cold"].ndim == 1
    if not same_length or arrays["cold"].dtype != bool or any(array.dtype.kind not in "iu" for array in integers):
        raise UserError(f"{path}: expected integers user, target, rank, rank_masked and booleans cold, of one length")
    order = np.argsort(arrays["user"])
    ranks = RunRanks(folder.name, **{name: array[order] for name, array in arrays.items()})
    if not len(order) or (np.diff(ranks.user) == 0).any() or min(ranks.rank.min(), ranks.rank_masked.min()) < 0:
        raise UserError(f"{path}: expected at least one user, each user once, and ranks from 1 on (0: not found)")
    _require_same_figures(folder / "test.json", ranks)
    return ranks


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    advice = f"test the run first: mealrec evaluate --run {path.parent.name}"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("user", "target", "rank", "rank_masked", "cold")}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {advice}") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({str(error)[:200]}); {advice}") from error


def _require_same_figures(path: Path, ranks: RunRanks) -> None:
    """test.json reports either every item ranked or the history masked; it must fit the ranks next to it."""
    try:
        report = json.loads(path.read_bytes())
        reported = np.array([float(report[key]) for key in METRIC_KEYS])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read, or lacks one of {', '.join(METRIC_KEYS)} ({error}); "
            f"test the run again: mealrec evaluate --run {path.parent.name}"
        ) from error
    for column in (ranks.rank, ranks.rank_masked):
        means = mean_metrics(column)
        if np.allclose(reported, [means[key] for key in METRIC_KEYS], rtol=0, atol=TOLERANCE):
            return
    raise UserError(
        f"{path} does not report the metrics of ranks-test.npz next to it, so one of them is from another test; "
        f"test the run again: mealrec evaluate --run {path.parent.name}"
    )


def _require_same_data(first: RunRanks, other: RunRanks) -> None:
    for field in ("user", "target", "cold"):
        if not np.array_equal(getattr(first, field), getattr(other, field)):
            what = {"user": "users", "target": "targets", "cold": "training rows (cold targets)"}[field]
            raise UserError(
                f"runs {first.name} and {other.name} have different test {what}, so their metrics cannot be compared; "
                "name runs that were trained and tested on the same prepared dataset"
            )


def _ranks(run: RunRanks, masked: bool) -> Ranks:
    return run.rank_masked if masked else run.rank


def _metrics_table(groups: Sequence[Group], masked: bool) -> str:
    rows = [["run", "targets", "users", *METRIC_KEYS]]
    for group in groups:
        apart = [warm_cold(_ranks(run, masked), run.cold) for run in group.runs]
        every = [mean_metrics(_ranks(run, masked)) for run in group.runs]
        parts = [
            ("all", len(group.runs[0].user), every),
            ("warm", apart[0].warm.count, [part.warm.metrics for part in apart]),
            ("cold", apart[0].cold.count, [part.cold.metrics for part in apart]),
        ]
        for label, count, metrics in parts:
            figures = [_figure([seed[key] for seed in metrics if seed]) for key in METRIC_KEYS]
            rows.append([group.name if label == "all" else "", label, f"{count:,}", *figures])
    return text_table(rows, left=2)


def _figure(values: Sequence[float]) -> str:
    """The mean, and with several seeds their standard deviation."""
    if not values:
        return "-"
    spread = f" ±{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _tests_table(groups: Sequence[Group], masked: bool) -> str:
    rows = [["against", "metric", "difference", "95 % interval", "t", "p", "users"]]
    first = groups[0].per_user(masked)
    for other in groups[1:]:
        values = other.per_user(masked)
        for key in TESTED:
            test = paired_t_test(first[key], values[key])
            interval = f"{test.low:+.4f} .. {test.high:+.4f}"
            figures = [f"{test.mean_difference:+.4f}", interval, f"{test.t:.2f}", f"{test.p:.2g}", f"{test.n:,}"]
            rows.append([other.name, key, *figures])
    return text_table(rows, left=2)
