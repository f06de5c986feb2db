"""What to run next to know more than a comparison shows, as commands that can be pasted."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from trainer.comparison.runs import FinishedRun
from trainer.comparison.seeds import System, stem
from trainer.local_path import runs_dir_option

_BASELINES = "popularity,transition-knn"
_MOST = 2


def advice(systems: Sequence[System], arguments: Sequence[Path], runs_dir: Path) -> list[str]:
    """Lines of advice, commands among them indented. systems: the best first. arguments: of this comparison."""
    one_seed = [
        system.runs[0]
        for system in systems
        if system.seed_count == "one" and system.runs[0].config and not system.repeats
    ]
    found, added = [], []
    if one_seed:
        found.append("How much a system with one seed would vary is unknown. More seeds, and then the same comparison:")
        for run in one_seed[:_MOST]:
            command, names = _more_seeds(run)
            found.append(command)
            added += names
        if len(one_seed) > _MOST:
            found.append(f"  # likewise for the other {len(one_seed) - _MOST}")
        found.append(_again(arguments, runs_dir, added))
    if len(systems) == 1 and systems[0].runs[0].config and not systems[0].is_fixed:
        run = systems[0].runs[0]
        name = stem(run.folder.name)
        made = [str(run.folder.with_name(f"{name}-{each}")) for each in _BASELINES.split(",")]
        found += [
            "Baselines, fitted in seconds, show whether a system is worth its training:",
            _train(run, name, "--model", _BASELINES),
            _again(arguments, runs_dir, made),
        ]
    return found


def _again(arguments: Sequence[Path], runs_dir: Path, added: Sequence[str]) -> str:
    """The same comparison, with the runs `added`; without arguments it is of a whole folder, which holds them."""
    return _command("compare", *map(str, arguments), *(added if arguments else ()), *runs_dir_option(runs_dir))


def _more_seeds(run: FinishedRun) -> tuple[str, list[str]]:
    """The command that trains `run` with two more seeds, and the paths of the new runs."""
    assert run.config is not None
    name, first = stem(run.folder.name), run.config.seed + 1
    free = (seed for seed in itertools.count(first) if not run.folder.with_name(f"{name}-s{seed}").exists())
    seeds = list(itertools.islice(free, 2))
    folders = [str(run.folder.with_name(f"{name}-s{seed}")) for seed in seeds]
    return _train(run, name, "--seeds", ",".join(map(str, seeds))), folders


def _train(run: FinishedRun, name: str, *options: str) -> str:
    return _command(
        "train", "--recipe", str(run.folder / "config.yaml"), "--name", name, "--runs-dir", str(run.folder.parent),
        *options,
    )  # fmt: skip


def _command(*parts: str) -> str:
    return "  " + shlex.join(["mealrec", *parts])
