"""A finished run as it is compared: its configuration, its report, its ranks, and whether these belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import UserError
from retrieval.metrics.registry import DEFAULT, MetricChoice
from trainer.config import recipe
from trainer.config.identity import EarlierVersionError, check_saved, other_versions
from trainer.config.schema import RunConfig
from trainer.evaluation.report import read_report, recall_warnings
from trainer.evaluation.run_ranks import RunRanks, difference, read_ranks


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """name: differs from that of every other run of the comparison. report: the content of test.json.

    config: None if an earlier version wrote a configuration that this one does not understand.
    """

    folder: Path
    name: str
    report: Mapping[str, Any]
    ranks: RunRanks
    config: RunConfig | None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the test noted of the run (`trainer.config.identity`); empty in reports of earlier versions."""
        return self.report.get("identity") or {}

    @property
    def data(self) -> str:
        """The path of the dataset, for messages."""
        return self.config.data.path if self.config else "dataset unknown"


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """The runs in `folders`, all tested on the same users and targets.

    Raises UserError for a run that lacks a file or was changed after its test, and for runs on different data.
    """
    names = [folder.name for folder in folders]
    runs = [_read(each, each.name if names.count(each.name) == 1 else str(each)) for each in folders]
    require_same_data(runs)
    return runs


def _read(folder: Path, name: str) -> FinishedRun:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(
            f"{path} does not exist, so the system and the seed of {name} are not known; copy it from where the run "
            "was trained, or train the run again"
        )
    ranks = read_ranks(folder)
    report = read_report(folder / "test.json")
    try:
        config = recipe.load(str(path), None, [], None)
    except UserError:
        return FinishedRun(folder, name, report, ranks, None)
    run = FinishedRun(folder, name, report, ranks, config)
    try:
        check_saved(run.identity, config, path, "since its test; bring it back")
    except EarlierVersionError:
        return replace(run, config=None)
    return run


def require_same_data(runs: Sequence[FinishedRun]) -> None:
    """Raise UserError that lists the runs by dataset, unless all have the same test users, targets, training rows."""
    apart: list[list[FinishedRun]] = []
    for run in runs:
        same = next((each for each in apart if difference(each[0].ranks, run.ranks) is None), None)
        if same is None:
            apart.append([run])
        else:
            same.append(run)
    if len(apart) < 2:
        return
    what = difference(apart[0][0].ranks, apart[1][0].ranks)
    lines = [
        f"  {', '.join(run.name for run in same)} ({same[0].data}, {len(same[0].ranks.user):,} test users)"
        for same in apart
    ]
    raise UserError(
        f"the runs have different test {what}, so their metrics cannot be compared:\n" + "\n".join(lines) + "\n"
        "name runs that were trained and tested on the same prepared dataset"
    )


def evaluated_with(runs: Sequence[FinishedRun]) -> MetricChoice:
    """The metrics of ranks, and the ks, that any of the runs was evaluated with; the default where that is not known.

    Each run has all of them: they follow from its ranks.
    """
    configs = [run.config.eval for run in runs if run.config]
    names = dict.fromkeys(name for config in configs for name in config.choice.rank_metrics())
    ks = sorted({k for config in configs for k in config.ks})
    return MetricChoice(tuple(names) or DEFAULT.names, tuple(ks) or DEFAULT.ks)


def warnings(runs: Sequence[FinishedRun]) -> list[str]:
    """What to be aware of when these runs are compared; each difference is from the first run."""
    older = [run for run in runs if run.config is None]
    found = []
    if older:
        files = f"{older[0].folder / 'config.yaml'}" + (f" and {len(older) - 1} more" if len(older) > 1 else "")
        found.append(f"written by another version, so not compared with the test of its run: {files}")
    found += recall_warnings({run.name: run.report for run in runs})
    first, *others = runs
    differing: dict[str, list[str]] = {}
    for run in others:
        for what in _differences(first, run):
            differing.setdefault(what, []).append(run.name)
    return found + [f"{', '.join(names)}: {what}" for what, names in differing.items()]


def _differences(first: FinishedRun, run: FinishedRun) -> list[str]:
    before, now = first.identity, run.identity
    found = [
        text
        for key, text in (
            ("manifest", f"trained with other data than {first.name} (its content, say)"),
            ("evaluation", f"the best epoch was chosen in another way than that of {first.name} (eval.index)"),
        )
        if key in before and key in now and before[key] != now[key]
    ]
    if "versions" in now and (changed := other_versions(before, now["versions"])):
        found.append(f"other versions than {first.name}, trained with {changed.replace('(now', '(here')}")
    return found
