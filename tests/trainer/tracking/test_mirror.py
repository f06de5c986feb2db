"""MLflow, whatever it does, hurts no run and gets every point once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.tracked_runs import (
    ALWAYS,
    append_epochs,
    assert_epochs,
    client_of,
    history,
    published,
    recorded,
    tracked,
    until,
    write_run,
)
from trainer.tracking import start_mirror, write_group


def test_everything_of_a_run_reaches_mlflow_and_a_resumed_run_goes_on(tmp_path: Path, store: str) -> None:
    run_dir, log = write_run(tmp_path / "runs")
    started = int(1000 * time.time())  # MLflow keeps whole milliseconds
    mirror = start_mirror(run_dir, store, "shelf")
    append_epochs(log, 1, 2, 3)
    until(lambda: recorded(run_dir)["posted"].get("epoch") == 30)  # while the run goes on, not only at its end
    assert mirror.close(60, "FAILED")
    assert mirror.close(1)  # a second call is harmless
    client = client_of(store)
    run_id = recorded(run_dir)["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"

    # epochs 3 and later again, after a resume from the checkpoint of epoch 2
    log.rewind(20)
    mirror = start_mirror(run_dir, store, "shelf")
    append_epochs(log, 3, 4)
    log.append("test", 4, 40, {"HR@10": 0.25, "masked": {"HR@10": 0.5}, "cold": None})
    log.append("end", 4, 40, {})
    (run_dir / "test.json").write_text("{}")
    assert mirror.close(60)
    assert recorded(run_dir)["run_id"] == run_id
    assert_epochs(client, run_id, 4)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "demo"
    assert client.get_experiment(run.info.experiment_id).name == "shelf"
    assert history(client, run_id, "test/HR_at_10") == [(0, 0.25)]  # one point, at 0: a bar
    assert history(client, run_id, "test/masked/HR_at_10") == [(0, 0.5)]
    assert 0 <= run.info.start_time - started < 1000
    assert run.info.end_time == round(1000 * log.lines()[-1]["time"])
    parameters = run.data.params
    assert parameters["compare.system"] == "sasrec"
    assert (parameters["compare.seed"], parameters["seed"]) == ("s7", "7")
    assert parameters["model.widths"] == "[1, 2]"
    assert parameters["model.many.k149"] == "149"
    assert len(parameters["model.note"]) == 500
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, json.loads(dataset.profile)["train_rows"]) == ("beauty", 15)
    assert run.data.tags["mlflow.source.git.commit"][:40].isalnum()
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {*ALWAYS, "test.json"}
    assert run.data.tags["seed_group"] == "demo"
    assert (run_dir / "mlflow.log").read_text() == ""
    assert not (ROOT / "mlruns").exists()


def test_a_store_whose_maker_was_killed_is_made_anew(tmp_path: Path) -> None:
    """MLflow itself never gets over a migration that was cut off ("table _alembic_tmp_jobs already exists")."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    make = [sys.executable, "-c", f"from trainer.tracking.store import make_store; make_store({uri!r})"]
    maker, new = subprocess.Popen(make, cwd=ROOT), tmp_path / ".mlflow.db.new"
    until(lambda: new.exists() and new.stat().st_size > 100_000)  # of some 600,000
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    run_dir, log = write_run(tmp_path / "runs")
    append_epochs(log, 1)
    published(run_dir, uri)
    assert recorded(run_dir)["posted"]["epoch"] == 10
    assert not new.exists()


def test_track_refuses_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run in .*absent \(no metrics\.jsonl\)"):
        tracked(tmp_path / "absent")


def test_a_mirror_that_cannot_start_is_reported_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = start_mirror(tmp_path / "absent", "sqlite://", "shelf")
    assert not mirror.close(1)
    assert "mealrec track --run absent" in capsys.readouterr().err


def test_a_reason_is_readable_and_names_no_password() -> None:
    from trainer.tracking.store import reason

    assert reason(ModuleNotFoundError("x", name="psycopg"), "postgresql://u@host/x").startswith("the package psycopg, ")
    said = reason(RuntimeError("useful: u, up, postgresql://u@host/x"), "postgresql://u@host/x")
    assert said == "RuntimeError: useful: ***, up, postgresql://host/x"
    assert "s3cret" not in reason(RuntimeError("xs3crets"), "https://ann:s3cret@host")


def run_ids(client: Any, experiment: str) -> list[str]:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run.info.run_id for run in found]


def test_a_new_run_takes_the_place_of_a_deleted_one_and_a_copy_has_its_own(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`store` is mlflow.db beside the runs."""
    run_dir, log = write_run(tmp_path / "runs")
    append_epochs(log, 1, 2)
    log.append("end", 2, 20, {})
    published(run_dir, store)
    client, first = client_of(store), recorded(run_dir)["run_id"]
    ended = client.get_run(first).info.end_time
    published(run_dir, store)  # again: as it was
    assert run_ids(client, "mealrec") == [first]
    assert client.get_run(first).info.end_time == ended == round(1000 * log.lines()[-1]["time"])

    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)
    published(copy, store)
    second = recorded(copy)["run_id"]
    assert set(run_ids(client, "mealrec")) == {first, second}
    assert_epochs(client, second, 2)

    client.delete_run(first)
    published(run_dir, store)
    third = recorded(run_dir)["run_id"]
    assert set(run_ids(client, "mealrec")) == {second, third}
    assert_epochs(client, third, 2)

    experiment = client.get_experiment_by_name("mealrec").experiment_id
    client.delete_experiment(experiment)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=rf"^MLflow does not take this run: .* was deleted .*--experiment-id {experiment}\)"
    ):
        tracked(run_dir)
    assert time.monotonic() - began < 60
    assert capsys.readouterr().err == "", "the error says it all"


def test_runs_of_one_train_have_a_parent_that_ends_with_the_last(tmp_path: Path, store: str) -> None:
    names = ("x-s1", "x-s2")
    made = {name: write_run(tmp_path / "runs", name) for name in names}
    write_group("x", [run_dir for run_dir, _ in made.values()])
    client, seen = client_of(store), []
    for name in names:
        run_dir, log = made[name]
        append_epochs(log, 1)
        (run_dir / "test.json").write_text(json.dumps({"HR@10": 0.25}))
        log.append("end", 1, 10, {})
        published(run_dir, store, "shelf", time.time())
        parent = client.get_run(client.get_run(recorded(run_dir)["run_id"]).data.tags["mlflow.parentRunId"])
        seen.append((parent.info.run_id, parent.info.status))
    assert seen == [(seen[0][0], "RUNNING"), (seen[0][0], "FINISHED")]
    assert parent.info.run_name == "x"
    assert "| x-s2 | 0.2500 |" in parent.data.tags["mlflow.note.content"]
    assert [artifact.path for artifact in client.list_artifacts(parent.info.run_id)] == ["comparison.png"]


def test_an_address_where_nobody_listens_is_told_with_its_reason_and_no_password(tmp_path: Path) -> None:
    run_dir, log = write_run(tmp_path / "runs")
    told = list[str]()
    mirror = start_mirror(run_dir, "http://ann:s3cret@127.0.0.1:1", "shelf", warn=told.append)
    process = mirror._process
    assert process is not None
    assert b"s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    append_epochs(log, 1)
    until(lambda: any("nobody listens there" in each for each in told))  # while the run goes on
    began = time.monotonic()
    assert not mirror.close(60)
    assert time.monotonic() - began < 30
    written = "".join(path.read_text() for path in run_dir.iterdir())
    assert "nobody listens there" in written
    assert "s3cret" not in written + "".join(told)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nonsense://ann:s3cret@host", "unsupported URI"),
        ("sqlite:////absent/folder/mlflow.db", "there is no folder /absent/folder"),
    ],
)
def test_an_address_that_can_never_work_is_not_tried_again(tmp_path: Path, uri: str, said: str) -> None:
    from mlflow.exceptions import MlflowException

    from trainer.tracking.store import PermanentError, permanent, reason

    run_dir, _ = write_run(tmp_path / "runs")
    with pytest.raises((MlflowException, PermanentError)) as error:
        published(run_dir, uri)
    assert permanent(error.value)
    assert said in reason(error.value, uri)
    assert "s3cret" not in reason(error.value, uri)
