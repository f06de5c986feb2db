"""Read and check the ranks of a run's test or validation, and average them over seeds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from retrieval.metrics.base import RankMetric, UserRanks, Values
from retrieval.metrics.registry import METRICS, MetricChoice, parse_key
from retrieval.metrics.summary import per_user
from trainer.data.bounded import MALFORMED, read_npz

#: allows for rounding in test.json; other ranks would differ by more (one of 10,000 users changes HR@10 by 1e-4)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class RunRanks:
    """Ranks of one run, sorted by user: user, target, rank, rank_masked (U,) integers; cold (U,) bool."""

    user: NDArray[np.integer[Any]]
    target: NDArray[np.integer[Any]]
    rank: UserRanks
    rank_masked: UserRanks
    cold: NDArray[np.bool_]

    def ranks(self, masked: bool) -> UserRanks:
        """Ranks among all items, or with the user's own history masked."""
        return self.rank_masked if masked else self.rank


def mean_over_seeds(runs: Sequence[RunRanks], masked: bool, choice: MetricChoice) -> dict[str, Values]:
    """Metrics of each user by key, (U,) float64 each: the mean over `runs`, which have the same users."""
    values = [per_user(run.ranks(masked), choice) for run in runs]
    return {key: np.mean([each[key] for each in values], axis=0) for key in values[0]}


def finishing(folder: Path) -> str:
    """The command that finishes the run in `folder`; of a finished run it only writes ranks and reports anew."""
    recipe, name, runs_dir = (shlex.quote(str(part)) for part in (folder / "config.yaml", folder.name, folder.parent))
    return f"mealrec train --recipe {recipe} --name {name} --runs-dir {runs_dir} --resume"


def read_ranks(folder: Path, split: Literal["test", "valid"] = "test") -> RunRanks:
    """Read the ranks of `split` in `folder` and check them against test.json or valid.json.

    Raises UserError with the wrong file.
    """
    path = folder / f"ranks-{split}.npz"
    arrays = _read_arrays(path)
    integers = [arrays[name] for name in ("user", "target", "rank", "rank_masked")]
    same_length = len({array.shape for array in arrays.values()}) == 1 and arrays["cold"].ndim == 1
    if not same_length or arrays["cold"].dtype != bool or any(array.dtype.kind not in "iu" for array in integers):
        raise UserError(f"{path}: expected integers user, target, rank, rank_masked and booleans cold, of one length")
    order = np.argsort(arrays["user"])
    ranks = RunRanks(**{name: array[order] for name, array in arrays.items()})
    if not len(order) or (np.diff(ranks.user) == 0).any() or min(ranks.rank.min(), ranks.rank_masked.min()) < 0:
        raise UserError(f"{path}: expected at least one user, each user once, and no rank below 0 (0: not found)")
    _require_same_figures(folder / f"{split}.json", ranks)
    return ranks


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    command = finishing(path.parent)
    try:
        file = read_npz(path)
        return {name: file[name] for name in ("user", "target", "rank", "rank_masked", "cold")}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; test the run first: {command}") from error
    except MALFORMED as error:
        raise UserError(f"{path} cannot be read ({str(error)[:200]}); test the run again: {command}") from error


def _require_same_figures(path: Path, ranks: RunRanks) -> None:
    """Raise UserError unless the metrics in test.json follow from `ranks`, either of all items or masked."""
    again = f"test the run again: {finishing(path.parent)}"
    try:
        report = json.loads(path.read_bytes())
        figures = {key: float(value) for key, value in report.items() if "@" in key}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {again}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    if not figures:
        raise UserError(f"{path} holds no metric; {again}")
    reported = {key: value for key, value in figures.items() if _of_ranks(key)}  # none: metrics of lists alone
    if reported and not any(_fit(reported, column) for column in (ranks.rank, ranks.rank_masked)):
        raise UserError(
            f"the metrics in {path} do not follow from ranks-{path.stem}.npz next to it, so one of the two is from "
            f"another test; {again}"
        )


def _of_ranks(key: str) -> tuple[RankMetric, int] | None:
    """The metric and k of a key such as "HR@10"; None for a metric of lists, or an unknown one."""
    parsed = parse_key(key)
    metric = METRICS[parsed[0]] if parsed else None
    return (metric, parsed[1]) if parsed and isinstance(metric, RankMetric) else None


def _fit(reported: dict[str, float], ranks: UserRanks) -> bool:
    known = {key: found for key in reported if (found := _of_ranks(key))}
    means = [float(metric.per_user(ranks, k).mean()) for metric, k in known.values()]
    return bool(np.allclose(list(reported.values()), means, rtol=0, atol=TOLERANCE))


def difference(first: RunRanks, other: RunRanks) -> str | None:
    """What of the test differs between two runs, in words; None if users, targets and training rows are the same."""
    for field in ("user", "target", "cold"):
        if not np.array_equal(getattr(first, field), getattr(other, field)):
            return {"user": "users", "target": "targets", "cold": "training rows (cold targets)"}[field]
    return None
