"""Which of several runs to keep: the one with the best validation NDCG@10. Test figures never choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.metrics.registry import MetricChoice
from retrieval.metrics.significance import paired_t_test
from trainer.evaluation.config import CRITERION
from trainer.evaluation.run_ranks import SeedGroup, read_run

_CRITERION = MetricChoice(("NDCG",), (10,))


@dataclass(frozen=True)
class Standing:
    """One system in the comparison. best_run: of its seeds. value: validation NDCG@10, the mean over its seeds."""

    system: str
    best_run: str
    value: float


@dataclass(frozen=True)
class Choice:
    """standings: the best first. p: of a paired t-test of the first against the second, over validation users (None
    for one system alone). users, seeds: how many the values are means of.
    """

    standings: tuple[Standing, ...]
    p: float | None
    users: int
    seeds: int


def choose(folders: Mapping[str, Sequence[Path]]) -> Choice:
    """Order systems by validation NDCG@10, history not masked, which also decided when their training stopped.

    folders: system -> the run folders of its seeds. Of systems that are equal, the one named first is first. Raises
    UserError for a run without validation ranks.
    """
    groups = [SeedGroup(system, [read_run(run, "valid") for run in runs]) for system, runs in folders.items()]
    values = [group.per_user(False, _CRITERION)[CRITERION] for group in groups]
    order = sorted(range(len(groups)), key=lambda place: -float(np.mean(values[place])))
    standings = tuple(
        Standing(groups[place].name, _best_seed(groups[place]), float(np.mean(values[place]))) for place in order
    )
    users = len(values[0])
    tested = len(order) > 1 and users > 1
    p = paired_t_test(values[order[0]], values[order[1]]).p if tested else None
    return Choice(standings, p, users, max(len(group.runs) for group in groups))


def _best_seed(group: SeedGroup) -> str:
    alone = {run.name: SeedGroup(run.name, [run]).per_user(False, _CRITERION)[CRITERION].mean() for run in group.runs}
    return max(alone, key=lambda name: alone[name])
