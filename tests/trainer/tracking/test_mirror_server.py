"""A server of MLflow that refuses, fails, hangs, loses answers or dies: the run goes on, and has every point once."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from tests.helpers.mlflow_server import Server
from tests.helpers.tracked_runs import (
    ALWAYS,
    append_epochs,
    assert_epochs,
    client_of,
    outages,
    published,
    recorded,
    tracked,
    until,
    write_run,
)
from trainer.tracking import start_mirror


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
    with pytest.raises(UserError, match=r"did not take everything within \d+ s.*mlflow\.log"):
        tracked(run_dir, "--timeout", "3")
    server.mode = "ok"
    server.release()
    published(run_dir, server.uri, "shelf")
    client, run_id = client_of(server.uri), recorded(run_dir)["run_id"]
    assert_epochs(client, run_id, 1)
    assert client.get_run(run_id).info.status == "FINISHED"
