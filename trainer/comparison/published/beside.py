"""The paper's figures beside those of a comparison, where the dataset is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.errors import UserError
from trainer.comparison.figures import Beside, Cost, Line, Ranking
from trainer.comparison.published.reader import Published, paper_dataset, published, why_not
from trainer.comparison.runs import FinishedRun
from trainer.comparison.seeds import System
from trainer.config.identity import check_data
from trainer.data.format.manifest import Manifest, read_manifest

#: of Table 3, the field of Cost that is the same quantity
_COSTS = {"train_seconds": "epoch_seconds", "evaluation_seconds": "valid_seconds", "memory_mb": "peak_mib"}


def beside(
    systems: Sequence[System], ranking: Ranking, costs: Sequence[Cost], manifest: Manifest, where: str
) -> tuple[list[Beside], list[str]]:
    """The paper's tables for the dataset of these systems, and notes: what contradicts itself, or why there is none.

    ranking: of all items, as the paper ranks. manifest, where: of the dataset, and what to call it in a note.
    """
    name = paper_dataset(manifest)
    if name is None:
        return [], [f"no published figures: {where} is {why_not(manifest)}"]
    found, notes = [], []
    figures = {
        row.system: {key: figure.mean for key, figure in row.figures.items()}
        for row in ranking.rows
        if row.targets == "all"
    }
    tables = [(published(2, name), figures, "metrics")]
    if name.startswith("microlens"):  # Table 3 is of these alone
        recorded = {each.system: {key: getattr(each, of) for key, of in _COSTS.items()} for each in costs}
        tables.append((published(3, name), recorded, "cost on one A100"))
    for table, ours, what in tables:
        title = f"{what}, Table {table.table}, {table.dataset.printed}"
        found.append(_beside(table, title, systems, ours))
        notes += [f"the paper, {each.name}: {each.says}" for each in table.contradictions]
    return found, list(dict.fromkeys(notes))


def _beside(
    table: Published, title: str, systems: Sequence[System], ours: Mapping[str, Mapping[str, float | None]]
) -> Beside:
    known = {key for figures in ours.values() for key in figures}
    metrics = tuple(metric for metric in table.metrics if metric in known)
    lines = []
    for row in table.rows:
        theirs = {metric: row.figures[metric] for metric in metrics}
        runs = [system.label for system in systems if system.name == row.system]
        lines += [Line(row.printed, run, theirs, {key: ours[run][key] for key in metrics}) for run in runs]
        if not runs:
            lines.append(Line(row.printed, None, theirs, {}))
    return Beside(table.table, title, metrics, lines)


def manifest_of(runs: Sequence[FinishedRun]) -> tuple[Manifest, str]:
    """The manifest of the dataset of these runs, and the path of the dataset.

    Raises UserError if it cannot be read, or is not the one that the runs were made on.
    """
    run = next((run for run in runs if run.config), None)
    if run is None or run.config is None:
        raise UserError("--published: no configuration of these runs can be read, so their dataset is not known")
    path = run.config.data.path
    try:
        manifest, _ = read_manifest(path)
    except UserError as error:
        raise UserError(f"--published reads which dataset the runs are on from its manifest: {error}") from None
    check_data(run.identity, manifest, run.name, path, "bring it back, or leave out --published")
    return manifest, path
