"""Which of several runs to keep: the one with the best validation NDCG@10. Test figures never choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.metrics.base import Values
from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.significance import paired_t_test
from trainer.evaluation.config import CRITERION
from trainer.evaluation.run_ranks import RunRanks, mean_over_seeds, read_ranks

_CRITERION = MetricChoice(("NDCG",), (10,))


@dataclass(frozen=True)
class Standing:
    """One system in the comparison. best_run: of its seeds. value: validation NDCG@10, the mean over its seeds.

    p: of a paired t-test of the best system against this one, over validation users; None for the best one itself, and
    where there is one user.
    """

    system: str
    best_run: str
    value: float
    p: float | None = None


@dataclass(frozen=True)
class Choice:
    """standings: the best first. users, seeds: how many the values are means of."""

    standings: tuple[Standing, ...]
    users: int
    seeds: int


def choose(folders: Mapping[str, Sequence[Path]]) -> Choice:
    """Order systems by validation NDCG@10, history not masked, which also decided when their training stopped.

    folders: system -> the run folders of its seeds. Of systems that are equal, the one named first is first. Raises
    UserError for a run without validation ranks.
    """
    read = {system: {run.name: read_ranks(run, "valid") for run in runs} for system, runs in folders.items()}
    values = {system: _per_user(list(runs.values())) for system, runs in read.items()}
    order = sorted(read, key=lambda system: -float(np.mean(values[system])))
    best = values[order[0]]
    standings = tuple(
        Standing(
            system,
            _best_seed(read[system]),
            float(np.mean(values[system])),
            paired_t_test(best, values[system]).p if values[system] is not best and len(best) > 1 else None,
        )
        for system in order
    )
    return Choice(standings, len(best), max(map(len, read.values())))


def _per_user(runs: Sequence[RunRanks]) -> Values:
    return mean_over_seeds(runs, False, _CRITERION)[CRITERION]


def _best_seed(runs: Mapping[str, RunRanks]) -> str:
    return max(runs, key=lambda name: _per_user([runs[name]]).mean())
