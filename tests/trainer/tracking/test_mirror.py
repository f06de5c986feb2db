"""MLflow, whatever it does, hurts no run and gets every point once."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.errors import UserError
from tests.helpers.mlflow_server import Server
from tests.helpers.paths import ROOT
from trainer.commands import track
from trainer.tracking import MetricsLog, start_mirror, write_group


def write_run(runs_dir: Path, name: str = "demo") -> tuple[Path, MetricsLog]:
    run_dir, data = runs_dir / name, runs_dir.parent / "beauty"
    run_dir.mkdir(parents=True)
    data.mkdir(exist_ok=True)
    manifest = {"users": 5, "items": 7, "interactions": 30, "train_rows": 15}
    (data / "manifest.json").write_text(json.dumps(manifest))
    config = {
        "data": {"path": str(data)},
        "model": {
            "name": "sasrec",
            "widths": [1, 2],
            "note": "x" * 9000,
            "many": {f"k{n}": n for n in range(150)},  # more than a request takes
        },
        "seed": 7,
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.append("start", 0, 0, {})
    return run_dir, log


ALWAYS = {"config.yaml", "metrics.jsonl", "learning_curves.png"}


def append_epochs(log: MetricsLog, *epochs: int) -> None:
    for epoch in epochs:
        log.append("epoch", epoch, 10 * epoch, {"loss": 1 / epoch, "valid": {"HR@10": epoch / 100}})


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def recorded(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "mlflow.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"posted": {}, "run_id": None}


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def assert_epochs(client: Any, run_id: str, count: int) -> None:
    epochs = range(1, count + 1)
    assert history(client, run_id, "loss") == [(10 * epoch, 1 / epoch) for epoch in epochs]
    assert history(client, run_id, "valid/HR_at_10") == [(10 * epoch, epoch / 100) for epoch in epochs]
    assert history(client, run_id, "epoch") == [(10 * epoch, float(epoch)) for epoch in epochs]


def outages(run_dir: Path) -> int:
    return (run_dir / "mlflow.log").read_text().count("MLflow fails")


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        yield


@pytest.fixture
def store(mlflow_store: Path, tmp_path: Path) -> str:
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def test_everything_of_a_run_reaches_mlflow_and_a_resumed_run_goes_on(tmp_path: Path, store: str) -> None:
    run_dir, log = write_run(tmp_path / "runs")
    started = time.time()
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
    assert 0 <= run.info.start_time - 1000 * started < 1000
    assert run.info.end_time == round(1000 * log.lines()[-1]["time"])
    parameters = run.data.params
    assert parameters["compare.system"] == "sasrec"
    assert parameters["compare.seed"] == "7"
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


#: a run that starts a mirror and then waits to be killed
RUN = """
import sys, time
from pathlib import Path
from tests.trainer.tracking.test_mirror import append_epochs
from trainer.tracking import MetricsLog, start_mirror
run_dir = Path(sys.argv[1])
log = MetricsLog(run_dir / "metrics.jsonl")
mirror = start_mirror(run_dir, sys.argv[2], "shelf")
append_epochs(log, 1, 2)
time.sleep(600)
"""


def test_a_killed_run_is_marked_killed_and_its_mirror_ends(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, log = write_run(tmp_path / "runs")
    with subprocess.Popen([sys.executable, "-c", RUN, str(run_dir), store], cwd=ROOT) as process:
        until(lambda: recorded(run_dir)["run_id"])
        process.send_signal(signal.SIGKILL)
    client, run_id = client_of(store), recorded(run_dir)["run_id"]
    until(lambda: client.get_run(run_id).info.status == "KILLED")
    assert_epochs(client, run_id, 2)
    until(lambda: client.list_artifacts(run_id))
    # it went on elsewhere without MLflow, and is synced by hand
    append_epochs(log, 3)
    log.append("end", 3, 30, {})
    assert tracked(run_dir) == 0
    told = capsys.readouterr().out
    assert "all 5 lines" in told
    assert "/runs?workflowType=machine_learning" in told
    assert_epochs(client, run_id, 3)
    assert client.get_run(run_id).info.status == "FINISHED"


def tracked(run_dir: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    track.add_arguments(parser)
    return track.run(parser.parse_args(["--run", run_dir.name, "--runs-dir", str(run_dir.parent), *options]))


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
    assert start_mirror(run_dir, uri, "mealrec").close(120, "FINISHED")
    assert recorded(run_dir)["posted"]["epoch"] == 10
    assert not new.exists()


def test_track_refuses_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run 'absent': .*metrics\.jsonl does not exist"):
        tracked(tmp_path / "absent")


def test_a_mirror_that_cannot_start_is_reported_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = start_mirror(tmp_path / "absent", "sqlite://", "shelf")
    assert not mirror.close(1)
    assert "mealrec track --run absent" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def application(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from mlflow.server import constants

    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_store, folder / "mlflow.db")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # the server sets it in this process: taken away at the end
        patch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        patch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(folder / "artifacts"))
        patch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
        from mlflow.server import app

        yield app


@pytest.fixture
def server(application: Any) -> Iterator[Server]:
    server = Server(application)
    yield server
    server.release()
    server.down()


def test_a_server_that_refuses_fails_hangs_and_loses_answers_gets_every_point_once(
    tmp_path: Path, server: Server
) -> None:
    run_dir, log = write_run(tmp_path / "runs", "faulty")
    mirror = start_mirror(run_dir, server.uri, "shelf")
    append_epochs(log, 1)
    until(lambda: outages(run_dir))  # refused: nobody listens
    for mode in ("500", "hang"):
        server.mode = mode
        if mode == "500":
            server.up()
        append_epochs(log, {"500": 2, "hang": 3}[mode])
        until(lambda mode=mode: server.seen[mode] >= 2)  # type: ignore[misc]
    server.mode = "lose"
    server.release()
    append_epochs(log, 4)
    log.append("end", 4, 40, {})
    assert mirror.close(90)
    lost = {path.rsplit("mlflow/", 1)[-1] for path in server.lost}
    assert lost >= {"runs/create", "runs/log-batch", "runs/log-inputs", "runs/update"}
    server.mode = "ok"
    client, run_id = client_of(server.uri), recorded(run_dir)["run_id"]
    assert_epochs(client, run_id, 4)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    runs = client.search_runs([run.info.experiment_id], "attributes.run_name = 'faulty'")
    assert [run.info.run_id for run in runs] == [run_id]  # though the answer to its creation was lost
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == ALWAYS


def test_a_server_that_dies_in_mid_run_and_comes_back_has_everything(tmp_path: Path, server: Server) -> None:
    run_dir, log = write_run(tmp_path / "runs", "restarted")
    server.up()
    mirror = start_mirror(run_dir, server.uri, "shelf")
    append_epochs(log, 1)
    until(lambda: recorded(run_dir)["posted"].get("epoch") == 10)
    server.down()
    append_epochs(log, 2)
    until(lambda: outages(run_dir) == 1)
    time.sleep(2)  # long enough for several tries
    server.up()
    append_epochs(log, 3)
    assert mirror.close(60)
    assert_epochs(client_of(server.uri), recorded(run_dir)["run_id"], 3)
    words = (run_dir / "mlflow.log").read_text().splitlines()
    assert len(words) == 2, words  # one line for the outage, one for its end
    assert "MLflow answers again" in words[1]


def test_closing_on_a_server_that_hangs_returns_in_time_and_says_how_to_sync(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, log = write_run(tmp_path / "runs", "hung")
    server.mode = "hang"
    server.up()
    mirror = start_mirror(run_dir, server.uri, "shelf")
    append_epochs(log, 1)
    log.append("end", 1, 10, {})
    until(lambda: server.seen["hang"])
    started = time.monotonic()
    assert not mirror.close(1.5)
    assert time.monotonic() - started < 15  # the server would hang for ever
    assert f"mealrec track --run hung --runs-dir {run_dir.parent}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"within 3 s.*mlflow\.log"):
        tracked(run_dir, "--timeout", "3")
    server.mode = "ok"
    server.release()
    assert tracked(run_dir) == 0
    client, run_id = client_of(server.uri), recorded(run_dir)["run_id"]
    assert_epochs(client, run_id, 1)
    assert client.get_run(run_id).info.status == "FINISHED"


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
    assert tracked(run_dir) == 0
    client, first = client_of(store), recorded(run_dir)["run_id"]
    ended = client.get_run(first).info.end_time
    assert tracked(run_dir) == 0  # again: as it was
    assert run_ids(client, "mealrec") == [first]
    assert client.get_run(first).info.end_time == ended == round(1000 * log.lines()[-1]["time"])

    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)
    assert tracked(copy) == 0
    second = recorded(copy)["run_id"]
    assert set(run_ids(client, "mealrec")) == {first, second}
    assert_epochs(client, second, 2)

    client.delete_run(first)
    assert tracked(run_dir) == 0
    third = recorded(run_dir)["run_id"]
    assert set(run_ids(client, "mealrec")) == {second, third}
    assert_epochs(client, third, 2)

    experiment = client.get_experiment_by_name("mealrec").experiment_id
    client.delete_experiment(experiment)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"was deleted in MLflow: bring it back .*--experiment-id {experiment}"):
        tracked(run_dir)
    assert time.monotonic() - began < 60
    assert "warning: MLflow does not take this run" in capsys.readouterr().err


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
        assert start_mirror(run_dir, store, "shelf").close(60)
        parent = client.get_run(client.get_run(recorded(run_dir)["run_id"]).data.tags["mlflow.parentRunId"])
        seen.append((parent.info.run_id, parent.info.status))
    assert seen == [(seen[0][0], "RUNNING"), (seen[0][0], "FINISHED")]
    assert parent.info.run_name == "x"
    assert "| x-s2 | 0.2500 |" in parent.data.tags["mlflow.note.content"]
    assert [artifact.path for artifact in client.list_artifacts(parent.info.run_id)] == ["comparison.png"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://ann:s3cret@127.0.0.1:1", "nobody listens there"),
        ("nonsense://ann:s3cret@host", "unsupported URI"),
        ("sqlite:////absent/folder/mlflow.db", "there is no folder /absent/folder"),
    ],
)
def test_an_address_that_cannot_work_is_told_with_its_reason_and_no_password(
    tmp_path: Path, uri: str, reason: str
) -> None:
    run_dir, log = write_run(tmp_path / "runs")
    told = list[str]()
    mirror = start_mirror(run_dir, uri, "shelf", warn=told.append)
    process = mirror._process
    assert process is not None
    assert b"s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    append_epochs(log, 1)
    until(lambda: any(reason in each for each in told))  # while the run goes on
    began = time.monotonic()
    assert not mirror.close(60)
    assert time.monotonic() - began < 30
    written = "".join(path.read_text() for path in run_dir.iterdir())
    assert reason in written
    assert "s3cret" not in written + "".join(told)
