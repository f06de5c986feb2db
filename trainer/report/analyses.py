"""The analyses that the figures of a study need and that nobody has made yet."""

from __future__ import annotations

from cluster import console
from models.errors import UserError
from trainer.analysis.record import ANALYSIS, write_analysis
from trainer.report.read import Configuration, Study


def complete(study: Study) -> None:
    """Analyse a run of each configuration in the parts whose figure is a map; a run that cannot be is told of."""
    for part in study.record.parts:
        if part.figure != "embedding":
            continue
        for each in study.configurations(part):
            if each.tested and not any((trial.folder / ANALYSIS).exists() for trial in each.tested):
                _analyse(each)


def _analyse(configuration: Configuration) -> None:
    from trainer.analysis.analyse import analyse, command  # torch and scikit-learn take seconds

    folder = configuration.tested[0].folder
    console.note(f"analysing {folder.name} for its map")
    try:
        found = analyse(folder, command(folder.name, folder.parent))
    except UserError as error:
        console.warn(f"no map of {folder.name}: {error}")
        return
    write_analysis(folder / ANALYSIS, found)
