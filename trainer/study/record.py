"""`study.json`: what a study consists of, for whoever reads its results. The folder of each run says the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import UserError
from retrieval.files import write_json
from trainer.tracking.study_files import FAILURE, STOPPED, STUDY

_VERSION = 1

#: how the report shows a part
FigureKind = Literal["bars", "heatmap", "lines", "complexity", "embedding", "search"]
#: which runs of a part read the test targets: every one, or those of the configuration that validation chose
Tested = Literal["all", "chosen"]

#: stopped: by the scheduler of a search, since others were better after as many epochs
State = Literal["finished", "failed", "stopped", "unfinished"]


@dataclass(frozen=True)
class PartRecord:
    """See `trainer.study.plan.Part`."""

    name: str
    title: str
    figure: FigureKind
    factors: tuple[str, ...]
    test: Tested


@dataclass(frozen=True)
class TrialRecord:
    """One run of a study. name: of the trial. run: the folder that holds its results: that of the first trial with the
    same configuration. label: what tables call the configuration; its seeds share it. factors: see `Part.factors`.
    """

    name: str
    part: str
    system: str
    label: str
    dataset: str
    seed: int
    factors: Mapping[str, Any]
    run: str

    @property
    def stem(self) -> str:
        """The label without the values of factors."""
        return self.label.removesuffix(factors_suffix(self.factors))


@dataclass(frozen=True)
class LeftOutRecord:
    """A system that was left out of a part on a dataset, and why."""

    part: str
    system: str
    dataset: str
    why: str


@dataclass(frozen=True)
class StudyRecord:
    """A study. folder: where it is. datasets: paths by name. created: ISO 8601. metric: what validation chooses by."""

    folder: Path
    name: str
    command: str
    plan: str
    about: str
    created: str
    metric: str
    datasets: Mapping[str, str]
    parts: tuple[PartRecord, ...]
    trials: tuple[TrialRecord, ...]
    left_out: tuple[LeftOutRecord, ...]

    def run_folder(self, trial: TrialRecord) -> Path:
        """The folder with the results of a trial, an ordinary run folder."""
        return self.folder / trial.run

    def of_part(self, part: str) -> list[TrialRecord]:
        """The trials of a part."""
        return [trial for trial in self.trials if trial.part == part]


def factors_suffix(factors: Mapping[str, Any]) -> str:
    """What the label of a trial says of its factors, after the system or variant: ` lambda_tcd=0.1 tcd_steps=5`."""
    shown = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in factors.items()}
    return "".join(f" {key.rpartition('.')[2]}={value}" for key, value in shown.items())


def write_study(study: StudyRecord) -> None:
    """Write `study.json`, whole or not at all."""
    content = {"version": _VERSION, **asdict(study)}
    del content["folder"]
    write_json(study.folder / STUDY, content)


def read_study(folder: Path) -> StudyRecord:
    """The study in `folder`. Raises UserError if there is none, or it was written by another version."""
    path = folder / STUDY
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content.pop("version") != _VERSION:
            raise UserError(f"{path} was written by another version of MealRec; read it with that one")
        return StudyRecord(
            folder=folder,
            parts=tuple(PartRecord(**{**each, "factors": tuple(each["factors"])}) for each in content.pop("parts")),
            trials=tuple(TrialRecord(**each) for each in content.pop("trials")),
            left_out=tuple(LeftOutRecord(**each) for each in content.pop("left_out")),
            **content,
        )
    except FileNotFoundError:
        raise UserError(f"there is no study in {folder} (no {STUDY}); `mealrec study` makes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a study that this version understands ({error})") from None


def trial_state(folder: Path, test: bool) -> State:
    """What has become of the run in `folder`. test: whether it is finished only when it was tested."""
    if (folder / FAILURE).exists():
        return "failed"
    if (folder / "valid.json").exists() and (not test or (folder / "test.json").exists()):
        return "finished"
    return "stopped" if (folder / STOPPED).exists() else "unfinished"


def failure(folder: Path) -> str:
    """Why the trial in `folder` failed, in one line."""
    content = json.loads((folder / FAILURE).read_bytes())
    return f"{content['kind']}: {content['message']}".splitlines()[0]
