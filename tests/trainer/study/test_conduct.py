"""Carrying out a study in this process: what is run, what is not run again, what is chosen and tested."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from tests.helpers.tiny_runs import OPTIONS, RUN
from trainer.data.format.manifest import load_manifest
from trainer.data.synthetic.generate import generate
from trainer.study.choose import choices
from trainer.study.conduct import Machine, conduct, outstanding
from trainer.study.plan import Plan
from trainer.study.record import (
    LeftOutRecord,
    PartRecord,
    StudyRecord,
    failure,
    read_study,
    trial_state,
    write_study,
)
from trainer.study.trial import note_death, run_trial
from trainer.study.trials import Data, Given, Trial, expand

INLINE = Machine(parallel=None, gpus=False, cpus_here=1, gpus_here=0, inline=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("data") / "tiny"
    generate(path, OPTIONS)
    return Data("tiny", str(path), load_manifest(path))


def _study(folder: Path, plan: Plan, data: Data) -> tuple[StudyRecord, list[Trial]]:
    trials, _ = expand(plan, [data], Given("demo", (*RUN, "tracking.mlflow=false")))
    parts = [PartRecord(name, p.title, p.figure, tuple(p.factors), p.test) for name, p in plan.parts.items()]
    made = [trial.record() for trial in trials]
    study = StudyRecord(
        folder, folder.name, "mealrec study", "own", "about", "2026-11-27T10:00:00+00:00", "NDCG@10",
        {data.name: data.path}, tuple(parts), tuple(made), (),
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_study(study)
    return study, trials


def _plan(block: dict[str, Any], **more: Any) -> Plan:
    return Plan.model_validate({"about": "x", "parts": {"a": {"title": "t", "runs": [block], **more}}})


GRID = {"systems": ["sasrec"], "settings": {"model.inner": 8},
        "grid": {"model.hidden": [8], "train.weight_decay": [0.0, 10.0]}}  # fmt: skip


def test_validation_chooses_and_only_what_it_chose_is_tested(tmp_path: Path, data: Data) -> None:
    plan = _plan(GRID, test="chosen", seeds=[1, 2])
    study, trials = _study(tmp_path / "s", plan, data)
    conduct(study, plan, trials, INLINE)
    (choice,) = choices(study)
    assert (choice.of, choice.unfinished) == (2, 0)
    valid = {
        label: [json.loads((study.run_folder(t) / "valid.json").read_text())["NDCG@10"] for t in study.trials
                if t.label == label]
        for label in {t.label for t in study.trials}
    }  # fmt: skip
    best = max(valid, key=lambda label: sum(valid[label]))
    assert choice.trials[0].label == best
    assert choice.value == pytest.approx(sum(valid[best]) / 2)
    tested = {t.name for t in study.trials if (study.run_folder(t) / "test.json").exists()}
    assert tested == {t.name for t in study.trials if t.label == best}
    assert not outstanding(study, trials)

    before = {path: path.stat().st_mtime_ns for path in study.folder.rglob("*") if path.is_file()}
    conduct(study, plan, trials, INLINE)  # everything is finished: nothing is written
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.rglob("*") if path.is_file()}


def test_one_failed_trial_does_not_end_the_others_and_is_tried_again(tmp_path: Path, data: Data) -> None:
    plan = _plan({"systems": ["sasrec"], "settings": {"model.inner": 8, "model.hidden": 8},
                  "variants": {"bad": {"train.weight_decay": 1e38}, "good": {}}})  # fmt: skip
    study, trials = _study(tmp_path / "s", plan, data)
    conduct(study, plan, trials, INLINE)
    bad, good = study.trials
    assert [trial_state(study.run_folder(t), test=True) for t in (bad, good)] == ["failed", "finished"]
    assert "not finite" in failure(study.run_folder(bad))
    assert outstanding(study, trials) == [trials[0]]
    conduct(study, plan, trials, INLINE)
    assert "not finite" in failure(study.run_folder(bad))


def _settings(trial: Trial, folder: Path) -> dict[str, Any]:
    config = trial.config.model_dump(mode="json")
    return {"config": config, "run_dir": str(folder), "command": "test", "test": True, "mirror": False}


def test_a_scheduler_stops_a_trial_after_an_epoch_for_good(tmp_path: Path, data: Data) -> None:
    plan = _plan({"systems": ["sasrec"], "settings": {"model.inner": 8, "model.hidden": 8}})
    _, (trial,) = _study(tmp_path / "s", plan, data)
    folder, told = tmp_path / "run", []

    def report(epoch: int, value: float) -> bool:
        told.append((epoch, value))
        return False

    run_trial(_settings(trial, folder), report)
    assert [epoch for epoch, _ in told] == [1]
    assert trial_state(folder, test=True) == "stopped"
    assert not (folder / "test.json").exists()
    recorded = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert recorded["metrics"]["valid"]["NDCG@10"] == told[0][1]

    again: list[int] = []
    run_trial(_settings(trial, folder), lambda epoch, _: again.append(epoch) or True)  # type: ignore[func-returns-value]
    assert again == [1]  # a scheduler that has forgotten it is told, and nothing is trained
    assert trial_state(folder, test=True) == "stopped"


def test_memory_that_is_refused_is_noted_with_the_peak(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan({"systems": ["sasrec"], "settings": {"model.inner": 8, "model.hidden": 8}})
    _, (trial,) = _study(tmp_path / "s", plan, data)

    def refuse(*_: object) -> None:
        raise MemoryError("cannot allocate 9 TB")

    monkeypatch.setattr("trainer.study.trial.train_worker", refuse)
    run_trial(_settings(trial, tmp_path / "run"), lambda *_: True)
    noted = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert noted["kind"] == "OutOfMemoryError"
    assert noted["peak_memory_mib"] > 10
    assert "cannot allocate 9 TB" in noted["message"]
    assert "MemoryError" in (tmp_path / "run" / "console.log").read_text()


def test_a_process_that_died_is_noted_once(tmp_path: Path) -> None:
    note_death(tmp_path, "killed")
    assert "WorkerDied" in failure(tmp_path)
    (tmp_path / "failure.json").unlink()
    (tmp_path / "valid.json").write_text("{}")
    note_death(tmp_path, "killed")  # it had finished
    assert not (tmp_path / "failure.json").exists()


def test_a_record_is_read_as_it_was_written(tmp_path: Path, data: Data) -> None:
    study, _ = _study(tmp_path / "s", _plan(GRID, test="chosen"), data)
    more = replace(study, left_out=(LeftOutRecord("a", "iisan", "tiny", "no layers"),))
    write_study(more)
    assert read_study(study.folder) == more


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no study"), ("[]", "is not a study"), ("{", "is not a study"),
        ('{"version": 9}', "another version"), ('{"version": 1, "parts": 3}', "is not a study"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_no_study_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_study(tmp_path)


def test_a_process_reads_the_files_of_a_dataset_once_for_all_its_trials(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data.path, copy)
    plan = _plan({"systems": ["popularity"]}, seeds=[1, 2, 3])
    study, trials = _study(tmp_path / "s", plan, Data("copy", str(copy), data.manifest))
    checked = []
    monkeypatch.setattr("trainer.data.format.dataset.verify_files", lambda root, _: checked.append(root))
    conduct(study, plan, trials[:2], INLINE)
    assert checked == [copy]
    items = copy / "sequences" / "items.npy"
    os.utime(items, ns=(0, 0))  # as after a write
    conduct(study, plan, trials[2:], INLINE)
    assert checked == [copy, copy]
