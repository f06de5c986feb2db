"""What `mealrec train` says at its end: which run to keep, what that means, and commands for what comes next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.commands.activation import activation, from_here
from trainer.commands.train_plan import PlannedRun
from trainer.data.storage import is_url
from trainer.evaluation.choice import Choice, Standing, choose
from trainer.evaluation.config import CRITERION

_WIDTH = 110
_CHANCE = 0.05


def closing(runs: Sequence[PlannedRun], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The last lines. runs: trained, all of one command. reports: the test of each, by its name."""
    folders: dict[str, list[Path]] = {}
    for run in runs:
        folders.setdefault(run.config.model.name, []).append(run.folder)
    choice = choose(folders)
    baselines = {run.config.model.name for run in runs if not run.config.model.options.trained}
    told = _verdict(choice, baselines) if len(runs) > 1 else []
    told += _cut_short(runs, reports)
    lines = [line for text in told for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)]
    return "\n".join(["", *lines, "next:", *(f"  {command}" for command in _next(choice, runs[0]))])


def _verdict(choice: Choice, baselines: set[str]) -> list[str]:
    """Sentences: what to keep, why, and what that means."""
    best, *others = choice.standings
    kept = f"Keep {best.best_run}: it has the best validation {CRITERION}, {best.value:.4f}"
    if others:
        kept += f" (next {others[0].best_run}, {others[0].value:.4f}"
        p = others[0].p
        kept += f"; p {p:.2g} over {choice.users:,} users)" if p is not None else ")"
    if choice.seeds > 1:
        kept += f". Figures are means of {choice.seeds} seeds; of these, the run is the best"
    told = [f"{kept}. Test figures say what to expect of it, and must not choose."]
    if others and not _surely_below(others[0]):
        told.append("These users do not tell the two apart: the cheaper one is as good a choice.")
    if meaning := _meaning(best, others, baselines):
        told.append(meaning)
    return told


def _surely_below(standing: Standing) -> bool:
    """Whether the best system is above this one by more than chance; with one user, nothing is known."""
    return standing.p is not None and standing.p <= _CHANCE


def _meaning(best: Standing, others: Sequence[Standing], baselines: set[str]) -> str:
    counting = next((each for each in others if each.system in baselines), None)
    if best.system in baselines and any(each.system not in baselines for each in others):
        return (
            f"{best.system} is a baseline, fitted in seconds: on these data no trained system is worth its cost. More "
            "interactions, or videos and titles of the items, are what trained systems gain from."
        )
    if best.system not in baselines and counting and counting.value > 0 and _surely_below(counting):
        gain = best.value / counting.value - 1
        return f"Training pays here: it is {gain:.0%} above the best baseline, {counting.best_run}."
    return ""


def _cut_short(runs: Sequence[PlannedRun], reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence about the runs that ended by their number of epochs while they still improved."""
    trained = [run for run in runs if run.config.model.options.trained]
    short = [run for run in trained if reports[run.name].get("epoch") == run.config.train.epochs]
    if not short:
        return []
    names, more = ", ".join(run.name for run in short), 2 * max(run.config.train.epochs for run in short)
    return [
        f"Best on validation in the last epoch, so longer training may do better (--set train.epochs={more}): {names}."
    ]


def _next(choice: Choice, run: PlannedRun) -> list[str]:
    """Commands to paste. run: any of the runs."""
    best, *others = choice.standings
    out, data, runs = f"export/{best.best_run}", run.config.data.path, run.folder.parent
    where = [] if runs == Path("runs").absolute() else ["--runs-dir", from_here(runs)]
    commands = [["mealrec", "compare", best.best_run, others[0].best_run, *where]] if others else []
    commands.append(["mealrec", "export", "--run", best.best_run, *where, "--out", out])
    if not is_url(data):
        who = ["--user", _first_user(Path(data)), "--data", from_here(Path(data))]
        commands.append(["mealrec", "recommend", "--model", out, *who, "--k", "10"])
    return [*activation(), *map(shlex.join, commands)]


def _first_user(data: Path) -> str:
    import polars as pl

    return str(pl.scan_parquet(data / "users.parquet", glob=False).select("user").head(1).collect().item())
