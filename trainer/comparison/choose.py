"""The runs that the arguments of `mealrec compare` stand for: a run, a family of runs, or all runs in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.registry import nearest
from trainer.evaluation.run_ranks import finishing
from trainer.text_files import read_yaml
from trainer.tracking.study_files import STUDY

#: a folder that holds one of these is a run, finished or not
_FILES = ("config.yaml", "metrics.jsonl", "test.json", "ranks-test.npz")
_MOST_NAMED = 20


@dataclass
class Chosen:
    """folders: of the runs, each once. first: those that the first argument stands for. notes: what is left out."""

    folders: list[Path] = field(default_factory=list)
    first: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose(arguments: Sequence[Path], runs_dir: Path) -> Chosen:
    """The runs for these arguments, or all in `runs_dir` if there are none.

    An argument is a run, by its name in `runs_dir` or its path; else a family, NAME for the runs NAME-SYSTEM,
    NAME-SYSTEM-sSEED and NAME-sSEED that `mealrec train --name NAME` makes; else a folder of runs. Runs of a family or
    a folder that are not finished are left out, with a note.
    Raises UserError, with the nearest name, if an argument is none of these.
    """
    chosen, seen = Chosen(), set[Path]()
    for argument in arguments or [runs_dir]:
        members = _members(argument, runs_dir) if arguments else _all_in(runs_dir)
        found = _finished(members, argument, chosen.notes)
        chosen.first = chosen.first or found
        chosen.folders += [folder for folder in found if folder.resolve() not in seen]
        seen |= {folder.resolve() for folder in found}
    for run in [folder for folder in chosen.folders if folder.name in {each.name for each in arguments}]:
        if others := [each.name for each in family(run) if each.resolve() not in seen]:
            chosen.notes.append(f"{run.name} is a run itself and stands for no other; not shown: {', '.join(others)}")
    return chosen


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, finished or not."""
    return any((folder / name).exists() for name in _FILES)


def family(folder: Path) -> list[Path]:
    """The runs beside `folder`, which need not exist, that the name of `folder` is the family of."""
    named = _runs_in(folder.parent, f"{folder.name}-")
    return [run for run in named if _rest(run.name[len(folder.name) + 1 :]) in ("", _system(run))]


def _all_in(runs_dir: Path) -> list[Path]:
    if runs := _runs_in(runs_dir):
        return runs
    raise UserError(f"there is no run in {runs_dir}; --runs-dir says where runs are")


def _members(argument: Path, runs_dir: Path) -> list[Path]:
    places = list(dict.fromkeys([runs_dir / argument, argument]))
    for place in places:
        if is_run(place):
            return [place if place.name not in ("", "..") else place.resolve()]
    for place in places:
        if runs := family(place) or _runs_in(place):
            return runs
    if argument.is_dir():
        raise UserError(f"there is no run in the folder {argument}; name runs, or a folder that holds runs")
    parent = argument.parent if argument.parent.is_dir() and len(argument.parts) > 1 else runs_dir
    known = [run.name for run in _runs_in(parent)]
    if not known:
        raise UserError(f"there is no run {argument}, nor any other in {parent}; --runs-dir says where runs are")
    hint = nearest(argument.name, [*known, *_families(known)])
    if hint.startswith("known") and len(known) > _MOST_NAMED:
        hint = f"it holds {len(known)} runs, such as {', '.join(known[:_MOST_NAMED])}"
    raise UserError(f"there is no run {argument.name!r} in {parent}: {hint}")


def _finished(runs: list[Path], argument: Path, notes: list[str]) -> list[Path]:
    """Those of `runs` that were tested; a single one is taken as it is, and refused when it is read."""
    if len(runs) == 1:
        return runs
    untested = [run for run in runs if not (run / "test.json").exists()]
    if len(untested) == len(runs):
        raise UserError(f"no run of {argument} is finished; to finish the first: {finishing(runs[0])}")
    unchosen = [run for run in untested if (run / "valid.json").exists() and (run.parent / STUDY).exists()]
    if unchosen:
        notes.append(f"{len(unchosen)} runs of a study are left out: not chosen on validation, so not tested")
    notes += [
        f"{run.name} is left out, it is not finished; to finish it: {finishing(run)}"
        for run in untested
        if run not in unchosen
    ]
    return [run for run in runs if run not in untested]


def _runs_in(folder: Path, start: str = "") -> list[Path]:
    if not folder.is_dir():
        return []
    runs = (each for each in folder.iterdir() if each.name.startswith(start) and not each.name.startswith("."))
    return sorted((each for each in runs if is_run(each)), key=_order)


def _order(run: Path) -> list[Any]:
    """Sorts s9 before s10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.name)]


def _rest(name: str) -> str:
    """What is left of a name without the seed at its end."""
    return re.sub(r"(^|-)s\d+$", "", name)


def _families(names: Iterable[str]) -> list[str]:
    """Names that several runs could belong to; only for a hint."""
    return sorted({_rest(name) for name in names} | {name.partition("-")[0] for name in names})


def _system(run: Path) -> str:
    """The name of the system in config.yaml, which an earlier version may have written."""
    try:
        return str(read_yaml(run / "config.yaml")["model"]["name"])
    except (UserError, KeyError, TypeError):
        return ""
