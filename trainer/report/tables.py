"""The tables of a report, as cells of text: metrics and tests, costs, data, what is missing, and the environment."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from models.errors import UserError
from trainer.comparison.figures import Figure as Value
from trainer.comparison.figures import Ranking, cost, ranking
from trainer.comparison.published.beside import beside
from trainer.comparison.runs import FinishedRun, evaluated_with, read_runs, warnings
from trainer.comparison.seeds import System
from trainer.comparison.tables import GAIN, STAR, difference_tables, gain_cells, published_table
from trainer.comparison.tables import Table as Compared
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import read_manifest
from trainer.report.figures.style import shown
from trainer.report.read import Configuration, Study
from trainer.report.words import factors_text
from trainer.study.record import PartRecord


@dataclass(frozen=True)
class Cell:
    """Text of a cell. mark: "best" or "second" of its column, or ""."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """left: columns that hold words. notes: sentences below it. open: shown at once, not behind its title."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    notes: Sequence[str] = field(default=())
    command: str = ""
    open: bool = True


def part_tables(study: Study, part: PartRecord) -> Iterator[Table]:
    """The tables of a part on each dataset: test metrics and tests where it was tested, else validation metrics."""
    for dataset, found in study.by_dataset(part):
        tested = [each for each in found if each.tested]
        if tested:
            yield from _test_tables(study, dataset, tested)
        if len(tested) < len(found):
            yield _validation_table(study, part, dataset, found)


def _test_tables(study: Study, dataset: str, tested: Sequence[Configuration]) -> Iterator[Table]:
    runs = read_runs([trial.folder for each in tested for trial in each.tested])
    by_folder = {run.folder: run for run in runs}
    systems = [System(each.first.label, [by_folder[trial.folder] for trial in each.tested]) for each in tested]
    reference = systems[tested.index(_reference(tested, study.record.metric))]
    choice = evaluated_with(runs)
    command = shlex.join(["mealrec", "compare", *(trial.folder.name for each in tested for trial in each.tested),
                          "--runs-dir", str(study.record.folder)])  # fmt: skip
    notes = _notes(runs)
    for masked, how in ((False, "every item ranked"), (True, "the user's own history masked")):
        made = ranking(how, systems, reference, masked, choice)
        yield _metrics(made, f"Test metrics on {dataset}, {how}", choice.keys, notes, command, not masked)
        if not masked:
            yield from _tests(made, dataset, command)
            yield from _published(study.record.datasets[dataset], dataset, systems, made, command)
        if cold := _cold(made, choice.keys):
            yield Table(
                f"Cold targets on {dataset}, {how}", ("system", "seeds", "users", *choice.keys), cold, 2, open=False
            )


def _notes(runs: Sequence[FinishedRun]) -> list[str]:
    """What to be aware of when these runs are compared."""
    known = [run for run in runs if run.config is not None]
    notes = warnings(known) if known else []
    if earlier := len(runs) - len(known):
        notes.append(
            f"{earlier} of the {len(runs)} runs were configured by an earlier version of MealRec: their settings were "
            "not compared with their tests."
        )
    return notes


def _reference(tested: Sequence[Configuration], metric: str) -> Configuration:
    """What the others are tested against: of the configurations of MealRec, if there are any, the one that is best on
    validation."""
    ours = [each for each in tested if each.first.system == "mealrec"]
    return max(ours or tested, key=lambda each: each.figure(metric, "valid").mean or 0.0)


def _metrics(
    made: Ranking, title: str, keys: Sequence[str], notes: Sequence[str], command: str, unfolded: bool
) -> Table:
    rows = [row for row in made.rows if row.targets == "all"]
    ours = [row for row in rows if row.system != "best possible"]
    marks = {key: _marks([row.figures[key].mean for row in ours]) for key in keys}
    cells = []
    for place, row in enumerate(rows):
        figures = [
            Cell(_figure(row.figures[key], _star(made, row.system, key)), marks[key].get(place, "")) for key in keys
        ]
        cells.append([Cell(row.system), Cell(row.seeds), *figures])
    explained = ["Bold: the best of its column; underlined: the second. ± is one standard deviation over seeds."]
    if made.gains:
        cells.append([Cell(GAIN), Cell(""), *map(Cell, gain_cells(made, keys))])
        explained.append(f"{GAIN}: of {made.reference}, relative to the best other one in each column.")
    if made.differences.starred:
        explained.append(f"{STAR}.")
    return Table(title, ("system", "seeds", *keys), cells, 2, [*explained, *notes], command, unfolded)


def _cold(made: Ranking, keys: Sequence[str]) -> list[list[Cell]]:
    """Rows of the targets that are in no training row; none where there is no such target."""
    return [
        [Cell(row.system), Cell(row.seeds), Cell(f"{row.users:,}"), *(Cell(_figure(row.figures[key])) for key in keys)]
        for row in made.rows
        if row.targets == "cold" and row.users
    ]


def _marks(values: Sequence[float | None]) -> dict[int, str]:
    order = sorted(
        (place for place, value in enumerate(values) if value is not None), key=lambda at: -(values[at] or 0)
    )
    return dict(zip(order, ("best", "second"), strict=False)) if len(order) > 1 else {}


def _star(made: Ranking, system: str, key: str) -> str:
    return "*" if system == made.reference and key in made.differences.starred else ""


def _tests(made: Ranking, dataset: str, command: str) -> Iterator[Table]:
    for table in difference_tables(made):
        notes = [f"{table.note}."] if table.note else []
        yield _of_compare(table, f"{table.title}, on {dataset}", notes, command)


def _of_compare(table: Compared, title: str, notes: Sequence[str], command: str) -> Table:
    header, *rows = table.rows
    return Table(title, tuple(header), [[*map(Cell, row)] for row in rows], table.left, notes, command, open=False)


def _published(path: str, dataset: str, systems: Sequence[System], made: Ranking, command: str) -> Iterator[Table]:
    """The paper's figures beside ours, if the dataset is one of the paper's."""
    try:
        manifest, _ = read_manifest(path)
    except UserError:  # the section on data says that it is not there
        return
    found, notes = beside(systems, made, [cost(system) for system in systems], manifest, dataset)
    for each in found:
        table = published_table(each)
        yield _of_compare(table, f"Published {table.title}, beside {dataset}", notes, f"{command} --published")


def _validation_table(study: Study, part: PartRecord, dataset: str, found: Sequence[Configuration]) -> Table:
    metric = study.record.metric
    ordered = sorted(found, key=lambda each: -(each.figure(metric, "valid").mean or 0.0))
    rows = [
        [
            Cell(each.first.label), Cell(factors_text(each.first.factors)), Cell(str(len(each.finished))),
            Cell(_figure(each.figure(metric, "valid")), "best" if place == 0 else ""),
            Cell(_figure(each.figure(metric, "test"))),
        ]
        for place, each in enumerate(ordered)
    ]  # fmt: skip
    header = ("configuration", "settings", "seeds", f"validation {metric}", f"test {metric}")
    notes = ["Validation chooses; the test set is read once, for what it chose."] if part.test == "chosen" else []
    return Table(f"Validation on {dataset}", header, rows, 2, notes, "", open=False)


def cost_tables(study: Study, part: PartRecord) -> Iterator[Table]:
    """Seconds and memory of a part, per dataset."""
    for dataset, found in study.by_dataset(part):
        rows = [
            [
                Cell(each.system), Cell(str(each.runs)), Cell(shown(each.epoch_seconds, ".2f")),
                Cell(shown(each.valid_seconds, ".2f")), Cell(shown(each.peak_mib, ",.0f")),
            ]
            for each in (configuration.cost for configuration in found)
        ]  # fmt: skip
        header = ("system", "seeds", "s per epoch", "s per evaluation", "peak MiB")
        yield Table(f"Cost on {dataset}", header, rows)


def missing_tables(study: Study) -> Iterator[Table]:
    """Systems that were left out, trials that failed, and trials that are not finished."""
    if study.record.left_out:
        rows = [
            [Cell(each.part), Cell(each.system), Cell(each.dataset), Cell(each.why)] for each in study.record.left_out
        ]
        yield Table("Left out", ("part", "system", "dataset", "why"), rows, 4)
    if failed := study.in_state("failed"):
        rows = [
            [
                Cell(trial.record.name), Cell(str(trial.failure.get("kind", ""))),
                Cell(shown(_number(trial.failure.get("peak_memory_mib")), ",.0f")),
                Cell(str(trial.failure.get("message", ""))),
            ]
            for trial in failed
        ]  # fmt: skip
        yield Table("Failed trials", ("trial", "kind", "peak MiB", "why"), rows, 4)
    if unfinished := study.in_state("unfinished"):
        rows = [[Cell(each.record.name), Cell(str(len(each.epochs)))] for each in unfinished]
        yield Table("Not finished", ("trial", "epochs"), rows, 1, ["The command of the study goes on with them."])


def data_table(datasets: Mapping[str, Dataset | str]) -> Table:
    """Table 1 of the paper, for the datasets of the study. A dataset that cannot be opened is the reason in words."""
    rows = []
    for name, dataset in datasets.items():
        if isinstance(dataset, str):
            rows.append([Cell(name), Cell(dataset), *[Cell("")] * 6])
            continue
        manifest = dataset.manifest
        counts = manifest.statistics
        content = ", ".join(
            f"{field} {'x'.join(map(str, info.shape))} ({info.encoder})" for field, info in manifest.content.items()
        )
        rows.append([
            Cell(name), Cell(content or "none"), Cell(f"{counts.users:,}"), Cell(f"{counts.items:,}"),
            Cell(f"{counts.interactions:,}"), Cell(f"{counts.average_length:.2f}"),
            Cell(f"{100 * counts.sparsity:.3f} %"), Cell(f"{manifest.splits.test.cold_targets:,}"),
        ])  # fmt: skip
    header = ("dataset", "content", "users", "items", "interactions", "mean length", "sparsity", "cold test targets")
    return Table("Data", header, rows, 2)


def environment_tables(study: Study, host: Mapping[str, str]) -> Iterator[Table]:
    """Versions that trained the trials, and the machine that made this report."""
    versions: dict[tuple[tuple[str, str], ...], int] = {}
    for trial in study.trials:
        noted = [(each.get("identity") or {}).get("versions") for each in trial.reports.values()]
        if found := next(filter(None, noted), None):
            key = tuple(found.items())
            versions[key] = versions.get(key, 0) + 1
    rows = [
        [Cell(f"{count:,}"), Cell(", ".join(f"{name} {value}" for name, value in each))]
        for each, count in versions.items()
    ]
    if rows:
        yield Table("Versions that trained", ("trials", "versions"), rows, 2)
    yield Table(
        "The machine that made this report", ("", ""), [[Cell(name), Cell(value)] for name, value in host.items()], 2
    )


def _figure(value: Value, mark: str = "") -> str:
    return shown(value.mean) + mark + ("" if value.spread is None else f" ±{value.spread:.4f}")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
