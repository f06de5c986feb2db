"""A study as the sections of its page."""

from __future__ import annotations

from collections.abc import Iterator

from models.errors import UserError
from trainer.data.format.dataset import Dataset
from trainer.durations import in_words
from trainer.report.cases import analysis_tables
from trainer.report.figures.analysis import analysis_figures, embedding_figure
from trainer.report.figures.bars import bars
from trainer.report.figures.cost import complexity, time_spent
from trainer.report.figures.curves import curves
from trainer.report.figures.data import distributions
from trainer.report.figures.heatmap import heatmaps
from trainer.report.figures.lines import lines
from trainer.report.figures.search import search
from trainer.report.figures.style import PageFigure, slug
from trainer.report.host import host
from trainer.report.page import Fact, Page, Section
from trainer.report.read import TIMES, Study
from trainer.report.tables import (
    Table,
    cost_tables,
    data_table,
    environment_tables,
    missing_tables,
    part_tables,
)
from trainer.study.record import PartRecord, State

_NO_FIGURE = {"embedding": "no trial was analysed (mealrec analyse), or none has vectors"}
_KINDS = {"bars": bars, "heatmap": heatmaps, "lines": lines, "complexity": complexity, "search": search}


def build(study: Study, remake: str) -> Page:
    """The page of a study. remake: the command that makes it."""
    sections = [
        *_parts(study, remake),
        *_analyses(study),
        _training(study, remake),
        _data(study, remake),
        Section("environment", "Environment", tables=list(environment_tables(study, host()))),
    ]
    missing = list(missing_tables(study))
    if missing:
        sections.append(Section("missing", "What is missing", tables=missing))
    shown = [section for section in sections if section.figures or section.tables or section.about]
    return Page(study.record, _facts(study), shown, remake)


def _facts(study: Study) -> list[Fact]:
    states: tuple[State, ...] = ("finished", "failed", "stopped", "unfinished")
    finished, failed, stopped, rest = (len(study.in_state(state)) for state in states)
    seconds = sum(trial.seconds(field) for trial in study.runs for field in TIMES)
    facts = [Fact("trials finished", f"{finished} of {len(study.trials)}", "good" if not failed and not rest else "")]
    facts += [Fact("stopped by the search", str(stopped))] if stopped else []
    facts += [Fact("failed", str(failed), "bad")] if failed else []
    facts += [Fact("not finished", str(rest), "warn")] if rest else []
    facts += [Fact("left out", str(len(study.record.left_out)), "warn")] if study.record.left_out else []
    facts += [Fact("of training", in_words(seconds))] if seconds else []
    facts.append(Fact("plan", study.record.plan))
    return [*facts, Fact("data", ", ".join(study.record.datasets))]


def _parts(study: Study, remake: str) -> Iterator[Section]:
    for part in study.record.parts:
        commands = (study.record.command, remake)
        figures = _embeddings(study, part) if part.figure == "embedding" else _KINDS[part.figure](study, part, commands)
        tables: list[Table] = []
        if part.figure != "embedding":
            tables += list(cost_tables(study, part)) if part.figure == "complexity" else []
            tables += list(part_tables(study, part))
        trials = [trial for trial in study.trials if trial.record.part == part.name]
        done = sum(trial.state == "finished" for trial in trials)
        about = "" if done == len(trials) else f"{done} of {len(trials)} trials are finished."
        if not figures and done:
            about = f"{about} There is no figure: {_NO_FIGURE.get(part.figure, 'no trial recorded an epoch')}.".strip()
        yield Section(slug("part", part.name), part.title, figures, tables, about)


def _embeddings(study: Study, part: PartRecord) -> list[PageFigure]:
    """The maps of the first seed of each configuration."""
    made = []
    for each in study.configurations(part):
        trial = next((trial for trial in each.finished if trial.analysis is not None), None)
        if trial is not None and (analysis := trial.analysis) is not None:
            title = f"{each.first.label} on {each.first.dataset}"
            made += embedding_figure(analysis, title, (study.record.command, analysis.command))
    return made


def _analyses(study: Study) -> Iterator[Section]:
    parts = {part.name for part in study.record.parts if part.figure == "embedding"}
    mapped = {trial.folder for trial in study.trials if trial.record.part in parts}  # another part may share the run
    for trial in study.runs:
        analysis = trial.analysis
        if analysis is None:
            continue
        figures = analysis_figures(analysis, trial.record.name, (analysis.command,))
        if trial.folder not in mapped:
            figures += embedding_figure(analysis, f"t-SNE: {trial.record.name}", (analysis.command,))
        name = f"{trial.record.label}, seed {trial.record.seed}"
        yield Section(
            slug("analysis", trial.record.name), f"Where {name} wins and loses on {trial.record.dataset}",
            figures, list(analysis_tables(analysis)), f"{analysis.users:,} test users, every item ranked.",
        )  # fmt: skip


def _training(study: Study, remake: str) -> Section:
    commands = (study.record.command, remake)
    figures = [figure for part in study.record.parts for figure in curves(study, part, commands)]
    about = "Learning curves of every part, and where the time went."
    return Section("training", "Training", [*time_spent(study, commands), *figures], about=about if figures else "")


def _opened(path: str) -> Dataset | str:
    try:
        return Dataset.open(path)
    except UserError as error:
        return f"not there any more: {error}"


def _data(study: Study, remake: str) -> Section:
    opened = {name: _opened(path) for name, path in study.record.datasets.items()}
    figures = [distributions(name, data, (remake,)) for name, data in opened.items() if isinstance(data, Dataset)]
    return Section("data", "Data", figures, [data_table(opened)])
