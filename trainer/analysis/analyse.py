"""Analyse a trained run on the test set: all that analysis.json holds."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from models.contract import SequenceModel
from models.errors import UserError
from models.mealrec.model import MealRec
from retrieval.metrics.registry import MetricChoice
from trainer.analysis.cases import Names, cases, neighbours
from trainer.analysis.embedding import embedding
from trainer.analysis.frames import frames
from trainer.analysis.groups import Users, groupings
from trainer.analysis.record import SAMPLE, Analysis
from trainer.analysis.scores import calibration, fit_temperature, sample_users, scorer, shown_to, vectors_of
from trainer.evaluation.report import read_report
from trainer.evaluation.run_ranks import RunRanks, difference, read_ranks
from trainer.local_path import runs_dir_option
from trainer.training.runs import Run, open_run

CHOICE = MetricChoice(("HR", "NDCG"), (10, 20))
#: fewer points than this have no map
_LEAST_USERS = 4


def analyse(
    folder: Path,
    command: str,
    *,
    data: str | None = None,
    against: Path | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Analysis:
    """Analyse the run in `folder`.

    command: that makes the analysis. data: the dataset, if it has moved. against: a run on the same data.
    sample: users whose vectors and scores are looked at; metrics are of all users. seed: of the sample and of the map.
    Raises UserError for a run that is not finished, and for runs on different data.
    """
    ranks = read_ranks(folder)
    other = read_ranks(against) if against is not None else None
    if against is not None and other is not None and (what := difference(ranks, other)):
        raise UserError(f"{folder.name} and {against.name} have different test {what}; take a run on the same dataset")
    run = open_run(folder, data)
    run.model.inference = str(read_report(folder / "valid.json")["inference"])
    _require_same_users(run, ranks)
    loaded, names = run.loaded, Names(run.loaded.dataset)
    users = Users(ranks, CHOICE, other)
    chosen = sample_users(users.count, sample, seed)
    scores = scorer(run.model)
    temperature = fit_temperature(scores, loaded, seed)
    shown = shown_to(scores, loaded, chosen, temperature)
    misses, hits = cases(shown, ranks, names, loaded.dataset.train_counts())
    model = run.model if isinstance(run.model, SequenceModel) else None
    return Analysis(
        run=folder.name,
        system=run.config.model.name,
        dataset=Path(run.config.data.path).name,
        command=command,
        against=against.name if against is not None else None,
        keys=CHOICE.keys,
        users=users.count,
        sampled=len(chosen),
        overall=users.group("all", np.ones(users.count, np.bool_)),
        groupings=tuple(groupings(users, loaded, ranks)),
        calibration=calibration(shown, ranks, temperature),
        confident_misses=misses,
        lucky_hits=hits,
        neighbours=neighbours(model, vectors_of(model, loaded, chosen), shown, names) if model else (),
        frames=frames(model, loaded, chosen, names) if isinstance(model, MealRec) else None,
        embedding=embedding(model, loaded, chosen, names, seed) if model and len(chosen) >= _LEAST_USERS else None,
    )


def _require_same_users(run: Run, ranks: RunRanks) -> None:
    users = run.loaded.dataset.manifest.users
    if not np.array_equal(ranks.user, np.arange(users)):
        raise UserError(
            f"{run.folder / 'ranks-test.npz'} is not of all {users:,} users of the dataset; test the run again"
        )


def command(
    run: str,
    runs_dir: Path,
    *,
    data: str | None = None,
    against: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> str:
    """The command that makes the analysis that `analyse` makes with these arguments."""
    options = ["--against", against] if against else []
    options += runs_dir_option(runs_dir)
    options += ["--data", data] if data else []
    options += ["--sample", str(sample)] if sample != SAMPLE else []
    options += ["--seed", str(seed)] if seed else []
    return shlex.join(["mealrec", "analyse", "--run", run, *options])
