"""`mealrec serve`: what is refused before Ray starts; and one real service, asked, renewed, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.head import free_ports
from tests.helpers.exported import N_ITEMS, export_model
from tests.helpers.paths import ROOT
from trainer.cli import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    export_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "put a secret into the variable MEALREC_TOKEN"),
        (["--host", "localhost"], "give an address such as 127.0.0.1"),
        (["--port", "0"], "a port is a number from 1 to 65535"),
        (["--replicas", "0"], "give at least 1"),
        (["--timeout", "0"], "--timeout is above 0"),
        (["--index", "hnsw"], "hnsw"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(
    model: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEALREC_TOKEN", raising=False)
    assert main(["serve", "--model", str(model), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(model), "--port", port]) == 2
    assert (
        f"cannot listen on 127.0.0.1 port {port} (Address already in use); give another --port"
        in capsys.readouterr().err
    )


def ask(url: str, body: dict[str, Any] | None = None, token: str = "secret") -> tuple[int, Any]:
    """The status and the JSON of an answer; status 0 if there is none."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, None


def processes(mark: str) -> list[psutil.Process]:
    """Processes that inherited the variable MARK from ours."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.ray
def test_a_service_follows_its_model_and_survives_a_killed_replica(tmp_path: Path) -> None:
    export_model(tmp_path / "a")
    export_model(tmp_path / "b", ids=[f"w{row}" for row in range(1, N_ITEMS)])
    (tmp_path / "current").symlink_to("a")
    mark, (port,) = uuid.uuid4().hex, free_ports(1)
    environment = {**os.environ, "MARK": mark, "MEALREC_TOKEN": "secret"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "trainer.cli", "serve", "--model", str(tmp_path / "current"), "--port", str(port)]
    service = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert service.stdout is not None
        said = [next(service.stdout), next(service.stdout)]
        assert said[1].startswith(f"serving {tmp_path}/current at http://127.0.0.1:{port}"), [*said, *service.stdout]
        url = f"http://127.0.0.1:{port}/v1"
        assert ask(f"{url}/model", token="guess")[0] == 401
        assert ask(f"{url}/recommend", {"history": ["v7"], "k": 3})[0] == 200
        assert ask(f"{url}/recommend", {"history": ["w7"]})[0] == 422
        _follows_the_link(tmp_path, url)
        _replaces_a_killed_replica(mark, url)
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
        assert [*service.stdout][-1].startswith("SIGTERM: requests that have begun are answered"), "nothing after it"
        end = time.monotonic() + 30
        while processes(mark) and time.monotonic() < end:
            time.sleep(0.2)
        assert processes(mark) == []
    finally:
        for process in processes(mark):
            process.kill()
        service.wait()


def _follows_the_link(tmp_path: Path, url: str) -> None:
    """Another export takes the place of the first one, while requests go on: none of them fails."""
    stop, statuses = threading.Event(), set[int]()

    def keep_asking() -> None:
        while not stop.is_set():
            statuses.add(ask(f"{url}/recommend", {"history": ["v7", "w7"], "k": 2})[0])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").rename(tmp_path / "current")
        end = time.monotonic() + 60
        while ask(f"{url}/item?id=w7")[0] != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert ask(f"{url}/item?id=w7")[1] == {"item": "w7", "title": None}
    finally:
        stop.set()
        asking.join()
    assert statuses == {200}


def _replaces_a_killed_replica(mark: str, url: str) -> None:
    (replica,) = [each for each in processes(mark) if each.name().startswith("ray::ServeRepl")]
    replica.kill()
    replica.wait(10)
    end = time.monotonic() + 120
    while ask(f"{url}/recommend", {"history": ["w7"]})[0] != 200 and time.monotonic() < end:
        time.sleep(0.5)  # what a client does that tries again
    assert ask(f"{url}/recommend", {"history": ["w7"]})[0] == 200


@pytest.mark.long
@pytest.mark.ray
def test_more_requests_than_the_queue_holds_are_refused_at_once(ray_head: dict[str, str]) -> None:
    (port,) = free_ports(1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.slow_service", str(port)],
        cwd=ROOT, env={**os.environ, **ray_head}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("statuses")]
    answered, refused, slowest_refusal = (float(word) for word in line.split()[1:])
    assert answered + refused == 12
    assert refused >= 5  # two are answered at a time, three wait
    assert slowest_refusal < 1.0, "a refusal does not wait for an answer"
