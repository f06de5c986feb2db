"""metrics.jsonl survives what a run survives, and MLflow, whatever it does, gets every point once and hurts nothing."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UserError
from trainer.commands import track
from trainer.tracking import MetricsLog, start_mirror

ROOT = Path(__file__).parents[1]


# --- metrics.jsonl


def brief(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in lines]


def test_lines_come_back_with_what_was_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "runs" / "a" / "metrics.jsonl")
    before = time.time()
    log.append("start", 0, 0, {})
    log.append("epoch", 1, 10, {"loss": 0.5, "valid": {"HR@10": 0.1}, "worst": float("nan")})
    start, epoch = log.lines()
    assert start["event"] == "start"
    assert epoch["metrics"] == {"loss": 0.5, "valid": {"HR@10": 0.1}, "worst": None}
    assert (epoch["epoch"], epoch["step"]) == (1, 10)
    assert before - 1 < epoch["time"] < time.time() + 1
    with pytest.raises(ValueError, match="unknown event"):
        log.append("epcoh", 1, 1, {})  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.integers(0, 99), max_size=6), data=st.data())
def test_a_torn_end_is_cut_off_and_nothing_else(steps: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log = MetricsLog(path)
        ends = [0]
        for step in steps:
            log.append("epoch", step, step, {"loss": step / 3})
            ends.append(path.stat().st_size)
        line, back = data.draw(st.integers(0, len(steps))), data.draw(st.integers(0, 60))
        cut = max(ends[line] - back, 0)
        rubbish = data.draw(st.sampled_from([b"", b"\0\0\0", b"\0\0\n", b"{}\n", b'{"event": "ep']))
        path.write_bytes(path.read_bytes()[:cut] + (rubbish if cut in ends else b""))
        again = MetricsLog(path)
        whole = sum(end <= cut for end in ends) - 1
        assert brief(again.lines()) == [("epoch", step) for step in steps[:whole]]
        again.append("epoch", 7, 777, {})
        assert brief(again.lines())[-1] == ("epoch", 777)


def test_damage_in_the_middle_is_named_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(3):
        log.append("epoch", step, step, {})
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(raw[0] + b"rubbish\n" + raw[2])
    with pytest.raises(UserError, match=rf"damaged at byte {len(raw[0])}"):
        MetricsLog(path).lines()


def test_rewind_drops_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append("start", 0, 0, {})
    for epoch in (1, 2, 3):
        log.append("epoch", epoch, 10 * epoch, {"loss": 1 / epoch})
    log.append("test", 3, 30, {})
    log.append("end", 3, 30, {})
    untouched = log.lines()[:3]
    log.rewind(30)
    assert brief(log.lines())[-1] == ("epoch", 30)
    log.rewind(25)
    assert log.lines() == untouched
    stamp = log.path.stat().st_mtime_ns
    log.rewind(25)
    assert log.path.stat().st_mtime_ns == stamp  # nothing to drop, nothing written
    log.append("epoch", 3, 30, {})
    assert brief(MetricsLog(log.path).lines()) == [("start", 0), ("epoch", 10), ("epoch", 20), ("epoch", 30)]


def test_a_line_that_the_disk_refuses_leaves_the_file_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append("epoch", 1, 1, {})
    before = log.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append("epoch", 2, 2, {})
    assert log.path.read_bytes() == before
    log.append("epoch", 2, 2, {})
    assert brief(log.lines()) == [("epoch", 1), ("epoch", 2)]


# --- MLflow


def write_run(runs_dir: Path, name: str = "demo") -> tuple[Path, MetricsLog]:
    run_dir, data = runs_dir / name, runs_dir.parent / "beauty"
    run_dir.mkdir(parents=True)
    data.mkdir(exist_ok=True)
    manifest = {"users": 5, "items": 7, "interactions": 30, "train_rows": 15}
    (data / "manifest.json").write_text(json.dumps(manifest))
    config = {
        "data": {"path": str(data)},
        "model": {"name": "sasrec", "widths": [1, 2], "note": "x" * 9000},
        "many": {f"k{n}": n for n in range(150)},  # more than a request takes
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.append("start", 0, 0, {})
    return run_dir, log


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


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty store that has its tables already: making them takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        from mlflow import MlflowClient

        path = tmp_path_factory.mktemp("store") / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        yield path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


@pytest.mark.slow
def test_everything_of_a_run_reaches_mlflow_and_a_resumed_run_goes_on(tmp_path: Path, store: str) -> None:
    run_dir, log = write_run(tmp_path / "runs")
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
    assert history(client, run_id, "test/HR_at_10") == [(40, 0.25)]
    assert history(client, run_id, "test/masked/HR_at_10") == [(40, 0.5)]
    parameters = run.data.params
    assert parameters["model.name"] == "sasrec"
    assert parameters["model.widths"] == "[1, 2]"
    assert parameters["many.k149"] == "149"
    assert len(parameters["model.note"]) == 500
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, json.loads(dataset.profile)["train_rows"]) == ("beauty", 15)
    assert run.data.tags["mlflow.source.git.commit"][:40].isalnum()
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {"config.yaml", "test.json"}
    assert (run_dir / "mlflow.log").read_text() == ""
    assert not (ROOT / "mlruns").exists()


#: a run that starts a mirror and then waits to be killed
RUN = """
import sys, time
from pathlib import Path
from tests.test_tracking import append_epochs
from trainer.tracking import MetricsLog, start_mirror
run_dir = Path(sys.argv[1])
log = MetricsLog(run_dir / "metrics.jsonl")
mirror = start_mirror(run_dir, sys.argv[2], "shelf")
append_epochs(log, 1, 2)
time.sleep(600)
"""


@pytest.mark.slow
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
    assert "all 5 lines" in capsys.readouterr().out
    assert_epochs(client, run_id, 3)
    assert client.get_run(run_id).info.status == "FINISHED"


def tracked(run_dir: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    track.add_arguments(parser)
    return track.run(parser.parse_args(["--run", run_dir.name, "--runs-dir", str(run_dir.parent), *options]))


def test_track_refuses_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run 'absent': .*metrics\.jsonl does not exist"):
        tracked(tmp_path / "absent")


def test_a_mirror_that_cannot_start_is_reported_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = start_mirror(tmp_path / "absent", "sqlite://", "shelf")
    with caplog.at_level(logging.WARNING):
        assert not mirror.close(1)
    assert "mealrec track --run absent" in caplog.text


class Server:
    """MLflow's own server application on 127.0.0.1, with faults in front of it, that can go and come back.

    mode: "ok"; "500"; "hang", no answer; "lose", the first request of each kind is done but its answer is lost.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self.mode = "ok"
        self.seen: Counter[str] = Counter()
        self.lost: set[str] = set()
        self._released = threading.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._server: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen[self.mode] += 1
        path = environ["PATH_INFO"]
        if self.mode == "500":
            start_response("500 Internal Server Error", [("Content-Type", "application/json")])
            return [b"{}"]
        if self.mode == "hang":
            self._released.wait(60)
        answer = self._application(environ, start_response)
        if self.mode == "lose" and path not in self.lost:
            self.lost.add(path)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer

    def up(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self._port, self, threaded=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def release(self) -> None:
        self._released.set()


@pytest.fixture(scope="module")
def application(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from mlflow.server import constants

    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder / "mlflow.db")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
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


@pytest.mark.slow
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
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {"config.yaml"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_closing_on_a_server_that_hangs_returns_in_time_and_says_how_to_sync(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
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
    assert time.monotonic() - started < 3.5
    assert f"mealrec track --run hung --runs-dir {run_dir.parent}" in caplog.text
    with pytest.raises(UserError, match=r"within 3 s; .*mlflow\.log"):
        tracked(run_dir, "--timeout", "3")
    server.mode = "ok"
    server.release()
    assert tracked(run_dir) == 0
    client, run_id = client_of(server.uri), recorded(run_dir)["run_id"]
    assert_epochs(client, run_id, 1)
    assert client.get_run(run_id).info.status == "FINISHED"
