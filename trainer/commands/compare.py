"""`mealrec compare`: metrics of several runs side by side, and paired t-tests over their users."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.metrics import METRIC_KEYS, Ranks, mean_metrics, paired_t_test, per_user, warm_cold
from trainer.table import text_table

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments, description and example of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Print the test metrics of runs on the same data: one table with every item ranked, one with the user's own\n"
        "history masked, cold targets apart; then the first run against each other one, by paired t-tests over users."
    )
    parser.epilog = "example:\n  mealrec compare demo-mealrec demo-tedrec demo-sasrec"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run that was tested")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")


def run(args: argparse.Namespace) -> int:
    """Print the comparison. Raises UserError for a run without a test, or runs on different data."""
    runs = [read_run(args.runs_dir / name) for name in args.runs]
    for other in runs[1:]:
        _require_same_data(runs[0], other)
    cold, users = int(runs[0].cold.sum()), len(runs[0].user)
    print(f"{users:,} test users; cold targets (not in any training row): {cold:,} ({100 * cold / users:.1f} %)")
    for title, masked in (("every item ranked", False), ("the user's own history masked", True)):
        print(f"\nTest metrics, {title}")
        print(_metrics_table(runs, masked))
        if len(runs) > 1:
            print(f"\nPaired t-tests, {title}: {runs[0].name} minus each other run")
            print(_tests_table(runs, masked))
    return 0


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


def _metrics_table(runs: Sequence[RunRanks], masked: bool) -> str:
    rows = [["run", "targets", "users", *METRIC_KEYS]]
    for entry in runs:
        ranks = _ranks(entry, masked)
        apart = warm_cold(ranks, entry.cold)
        groups = [
            ("all", len(ranks), mean_metrics(ranks)),
            ("warm", apart.warm.count, apart.warm.metrics),
            ("cold", apart.cold.count, apart.cold.metrics),
        ]
        for label, count, metrics in groups:
            figures = [f"{metrics[key]:.4f}" if metrics else "-" for key in METRIC_KEYS]
            rows.append([entry.name if label == "all" else "", label, f"{count:,}", *figures])
    return text_table(rows, left=2)


def _tests_table(runs: Sequence[RunRanks], masked: bool) -> str:
    rows = [["against", "metric", "difference", "95 % interval", "t", "p", "users"]]
    first = per_user(_ranks(runs[0], masked))
    for other in runs[1:]:
        values = per_user(_ranks(other, masked))
        for key in TESTED:
            test = paired_t_test(first[key], values[key])
            interval = f"{test.low:+.4f} .. {test.high:+.4f}"
            figures = [f"{test.mean_difference:+.4f}", interval, f"{test.t:.2f}", f"{test.p:.2g}", f"{test.n:,}"]
            rows.append([other.name, key, *figures])
    return text_table(rows, left=2)
