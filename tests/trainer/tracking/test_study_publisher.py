"""MLflow has all runs of a study, each with its end, under one parent run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.helpers.tracked_runs import append_epochs, write_run
from trainer.tracking.group import write_group
from trainer.tracking.study_publisher import StudyPublisher, ended


def _runs(store: str) -> dict[str, Any]:
    client = MlflowClient(store)
    (experiment,) = (each for each in client.search_experiments() if each.name == "study")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_runs_of_a_study_are_mirrored_with_their_ends(store: str, tmp_path: Path) -> None:
    study = tmp_path / "first"
    done, done_log = write_run(study, "done")
    failed, failed_log = write_run(study, "failed")
    going, going_log = write_run(study, "going")
    for log in (done_log, failed_log, going_log):
        append_epochs(log, 1)
    write_group("first", [done, failed, going, study / "waiting"])
    done_log.append("end", 1, 10, {"peak_memory_mib": 1.0})
    (failed / "failure.json").write_text(json.dumps({"message": "no"}))
    assert [ended(run) for run in (done, failed, going)] == ["FINISHED", "FAILED", None]

    publisher = StudyPublisher(study, store, "study")
    publisher.sync()
    runs = _runs(store)
    assert {name: run.info.status for name, run in runs.items()} == {
        "done": "FINISHED", "failed": "FAILED", "going": "RUNNING", "first": "RUNNING",
    }  # fmt: skip
    parent = runs["first"].info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("done", "failed", "going")} == {parent}

    append_epochs(going_log, 2)
    going_log.append("end", 2, 20, {"peak_memory_mib": 1.0})
    # a chosen run is tested later: its file is rewound, and goes on
    done_log.rewind(10)
    done_log.append("test", 1, 10, {"HR@10": 0.25})
    done_log.append("end", 1, 10, {"peak_memory_mib": 1.0})
    publisher.sync()
    publisher.finish("FINISHED")
    runs = _runs(store)
    assert runs["going"].info.status == runs["first"].info.status == "FINISHED"
    assert runs["going"].data.metrics["epoch"] == 2
    assert runs["done"].data.metrics["test/HR_at_10"] == 0.25


def test_what_a_killed_study_left_open_is_ended(store: str, tmp_path: Path) -> None:
    study = tmp_path / "first"
    run, log = write_run(study, "cut")
    append_epochs(log, 1)
    write_group("first", [run])
    publisher = StudyPublisher(study, store, "study")
    publisher.sync()
    publisher.finish("FAILED")
    assert {name: run.info.status for name, run in _runs(store).items()} == {"cut": "FAILED", "first": "FAILED"}
