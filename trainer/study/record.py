"""What a study is, as its study.json says: parts, trials, and what was left out; and the state of each trial.

RUNS_DIR/STUDY/ holds study.json and an ordinary run folder per trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from models.errors import UserError

RECORD = "study.json"
FAILURE = "failure.json"
VERSION = 1

FigureKind = Literal["bars", "heatmap", "lines", "complexity", "embedding", "search"]
#: which configurations of a part are tested: all, or those that validation chose
Tested = Literal["all", "chosen"]
State = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class Part:
    """A question of the study, and the figure that answers it. factors: the settings that its trials vary."""

    name: str
    title: str
    figure: FigureKind
    factors: tuple[str, ...]
    test: Tested


@dataclass(frozen=True)
class TrialRecord:
    """One run of the study. label: what tables call its configuration; seeds of one configuration share it."""

    name: str
    part: str
    system: str
    label: str
    dataset: str
    seed: int
    factors: Mapping[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A system that was not trained on a dataset, and why."""

    part: str
    system: str
    dataset: str
    why: str


@dataclass(frozen=True)
class StudyRecord:
    """The content of study.json. metric: what validation chooses by. datasets: name -> path. folder: where it is."""

    name: str
    command: str
    plan: str
    about: str
    created: str
    metric: str
    datasets: Mapping[str, str]
    parts: tuple[Part, ...]
    trials: tuple[TrialRecord, ...]
    left_out: tuple[LeftOut, ...]
    folder: Path

    def of_part(self, part: Part) -> list[TrialRecord]:
        """The trials of a part, in the order of the plan."""
        return [trial for trial in self.trials if trial.part == part.name]


_ADAPTER = TypeAdapter(StudyRecord)


def read_study(folder: Path) -> StudyRecord:
    """The study in `folder`. Raises UserError, naming the file, if it is missing, damaged, or of another version."""
    path = folder / RECORD
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if (version := content.pop("version", None)) != VERSION:
            raise UserError(f"{path} has version {version!r}, this MealRec reads version {VERSION}; use the one that wrote it")
        return _ADAPTER.validate_python(content | {"folder": folder})
    except FileNotFoundError:
        raise UserError(f"{folder} is not a study (no {RECORD}); give the name of a folder that mealrec study made") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} does not fit: {where}: {first['msg']}; bring the file back from a copy") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); bring the file back from a copy") from None


def trial_state(folder: Path, test: Tested) -> State:
    """The state of a trial from its run folder. test: of its part; where it is "chosen", validation ends a trial."""
    reports = ("valid.json", "test.json") if test == "all" else ("valid.json",)
    if all((folder / name).exists() for name in reports):
        return "finished"
    return "failed" if (folder / FAILURE).exists() else "unfinished"
