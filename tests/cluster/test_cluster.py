"""A real Ray head and a real Ray Train run with gloo, and each check before the start."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import head, jobs, preflight
from cluster.failures import PreflightError, WorkerFailed
from cluster.session import connected, on_a_cluster, private_environment, require_plain_path
from tests.helpers.paths import ROOT

#: run in its own process, because a head and a client set variables of Ray that cannot be unset; it kills itself
SCRIPT = """
import os, signal, sys
from pathlib import Path
from cluster import head, jobs
with head.running(cpus=3) as where:
    listening = [row.split() for name in ("tcp", "tcp6") for row in open(f"/proc/net/{name}").readlines()[1:]]
    mark = where.mark
    inodes = set()
    for pid in head.processes_of(mark):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            try: inodes.add(os.readlink(each))
            except OSError: pass
    for row in listening:
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes: print("listens", row[1].rpartition(":")[0])
    print("mark", mark, len(head.processes_of(mark)))
    sys.stdout.flush()
    print("status", jobs.submit(where, ["python", "-m", "tests.helpers.cluster_worker", sys.argv[1]]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.ray
def test_a_job_on_a_head_of_its_own_survives_a_killed_worker(tmp_path: Path) -> None:
    """At the end the head's starter is killed, and the head ends too. (A head that is stopped: fixture `ray_head`.)"""
    folder = tmp_path / "with a space"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    out, report = done.stdout, done.stdout + done.stderr
    # we get the job's exit status, and the output of rank 0 once, without a prefix
    assert done.returncode == -signal.SIGKILL, report
    assert "\nstatus 2\n" in out, report
    assert "\nrank 0: sum 3 by gloo, 1 threads\n" in out, report
    assert "rank 1: sum" not in out
    # workers that were killed before and during training were replaced; the user's mistake was not tried again
    assert (folder / "killed early").exists()
    assert out.count("; starting the workers again") == 1, report
    assert (folder / "killed").exists()
    assert len(list(folder.glob("attempt-0-*"))) in (2, 3)  # 3 if the other worker was the one killed early
    assert len(list(folder.glob("refused-0-*"))) == 1
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["kind"], outcome["message"]) == ("UserError", "the table has no column 'x'")
    assert "cluster_worker.py" in outcome["detail"]
    # the driver asked for less output then, and workers obey
    assert "said by rank 0" not in out
    assert "\nwarning: of rank 0\n" in out
    # the head listened on loopback only, and it ended with the process that had started it
    addresses = {line.split()[1] for line in out.splitlines() if line.startswith("listens ")}
    assert addresses, report
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}, report
    (mark,) = [line.split()[1] for line in out.splitlines() if line.startswith("mark ")]
    end = time.monotonic() + 60
    while head.processes_of(mark) and time.monotonic() < end:
        time.sleep(0.2)
    assert head.processes_of(mark) == []
    shutil.rmtree(Path(head.PLACE, mark))


class _BusyHead:
    """A head that answers like one on a busy machine: it refuses several submissions before it accepts one."""

    def __init__(self, *answers: Exception) -> None:
        self.answers, self.names = list(answers), set[str]()

    def submit_job(self, entrypoint: str, submission_id: str) -> None:
        assert entrypoint == "python x.py"
        self.names.add(submission_id)
        if self.answers:
            raise self.answers.pop(0)


def test_a_submission_waits_for_the_agent_and_is_not_made_twice() -> None:
    late = RuntimeError("Request failed with status code 500: No available agent to submit job")
    busy = _BusyHead(late, ConnectionError("lost"), RuntimeError("Job with submission_id x already exists."))
    assert {jobs._submit(busy, "python x.py")} == busy.names
    assert not busy.answers
    with pytest.raises(PreflightError, match="took no job for -1 s: Request failed"):
        jobs._submit(_BusyHead(late), "python x.py", wait_s=-1)
    with pytest.raises(RuntimeError, match="no such file"):
        jobs._submit(_BusyHead(RuntimeError("no such file")), "python x.py")


class _Talking:
    """A head whose job has this log."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:  # noqa: ARG002
        for text in self.log:
            yield text


def test_a_job_s_log_is_shown_without_ray_s_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    ray = ["2026-11-26 09:07:20,351\tINFO job_manager.py:581 -- Runtime env is setting up.\n",
           "Running entrypoint for job mealrec-8f: python trainer/run.py\nfirst line\n"]  # fmt: skip
    asyncio.run(jobs._follow(_Talking([*ray, "epoch 1, INFO: ", "half a line\n"]), "mealrec-8f"))
    assert capsys.readouterr().out == "first line\nepoch 1, INFO: half a line\n"


def test_a_failure_travels_between_processes() -> None:
    from ray import cloudpickle  # what Ray sends it with

    failure = WorkerFailed("UserError", "no such file", "Traceback", True, 12.5)
    copy = cloudpickle.loads(cloudpickle.dumps(failure))
    assert (copy.kind, copy.message, copy.detail, copy.final, copy.when) == failure.args


def test_a_path_with_spaces_is_refused_with_a_way_out() -> None:
    require_plain_path("/opt/venv/bin/python")
    with pytest.raises(PreflightError, match="ln -s"):
        require_plain_path("/opt/my venv/bin/python")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("The current node timed out during startup."), "Is the machine very busy\\? Try again"),
        (ConnectionError("nobody is there"), "nobody is there$"),
    ],
)
def test_a_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    import ray

    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = dict(os.environ)
    try:
        with (
            pytest.raises(PreflightError, match=f"^cannot connect to a Ray on this machine: .*{told}"),
            connected(cpus=1, gpus=0),
        ):
            pass
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_free_ports_are_distinct_and_free() -> None:
    ports = head.free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def test_a_job_or_an_address_means_a_cluster(name: str) -> None:
    assert on_a_cluster({name: "127.0.0.1:6379"})
    assert not on_a_cluster({name: ""})
    assert not on_a_cluster({})


def test_a_ray_of_our_own_has_authentication_and_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = private_environment({}), private_environment({})
    assert first["RAY_AUTH_MODE"] == "token"
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert "RAY_AUTH_TOKEN" not in private_environment({"RAY_AUTH_TOKEN": "theirs"})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("theirs")
    assert "RAY_AUTH_TOKEN" not in private_environment({})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"])
def test_loopback_needs_no_token(host: str) -> None:
    preflight.check_address(host, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.org", "", "2001:db8::1"])
@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_public_address_needs_a_token(host: str, environment: Mapping[str, str]) -> None:
    with pytest.raises(PreflightError, match="RAY_AUTH_MODE=token"):
        preflight.check_address(host, environment)
    preflight.check_address(host, {"RAY_AUTH_MODE": "token"})
    with pytest.raises(PreflightError, match="MLflow has no authentication"):
        preflight.check_address(host, {"RAY_AUTH_MODE": "token"}, what="MLflow")


def test_gpus_are_those_of_ray_s_nodes() -> None:
    some, none = {"CPU": 9.0, "GPU": 2.0}, {"CPU": 9.0}
    asked = [(wanted, total) for wanted in (None, False) for total in (some, none)]
    assert [preflight.uses_gpus(*each) for each in asked] == [True, False, False, False]
    assert preflight.uses_gpus(True, some)
    with pytest.raises(PreflightError, match=r"engine\.device=cuda, but no node of Ray has a GPU"):
        preflight.uses_gpus(True, none)


@pytest.mark.long
@pytest.mark.ray
def test_a_driver_without_a_gpu_places_workers_on_the_gpus_of_the_cluster(tmp_path: Path) -> None:
    with head.running(cpus=4, gpus=2) as where:
        done = subprocess.run(
            [sys.executable, "-m", "tests.helpers.gpu_placement", str(tmp_path)],
            cwd=ROOT, env={**os.environ, **where.environment, "RAY_ADDRESS": where.address},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("placed", "refused"))]
    assert said == [
        "placed 2 True cuda",
        "placed 2 False cpu",
        "placed 2 True cuda",
        "refused 3 workers need 3 GPUs and the cluster has 2; use fewer workers, add nodes, or train on CPUs",
    ]


@given(
    workers=st.integers(1, 64), each=st.sampled_from([0.5, 1.0, 4.0]), cpus=st.integers(0, 64), gpus=st.integers(0, 8)
)
def test_resources_suffice_or_are_named(workers: int, each: float, cpus: int, gpus: int) -> None:
    total = {"CPU": float(cpus), "GPU": float(gpus)}
    for use_gpus in (False, True):
        enough_cpus, enough_gpus = workers * each <= cpus, workers <= gpus or not use_gpus
        if enough_cpus and enough_gpus:
            preflight.check_resources(workers, gpus=use_gpus, cpus_per_worker=each, total=total)
            continue
        short = "CPU" if not enough_cpus else "GPU"
        with pytest.raises(PreflightError, match=f"{short}s and the cluster has {total[short]:g}; use fewer workers"):
            preflight.check_resources(workers, gpus=use_gpus, cpus_per_worker=each, total=total)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_folders(tmp_path / "runs" / "new", [tmp_path])
    assert list((tmp_path / "runs" / "new").iterdir()) == []
    with pytest.raises(PreflightError, match="nowhere"):
        preflight.check_folders(tmp_path / "runs", [tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match=r"cannot write to .*file"):
        preflight.check_folders(tmp_path / "file" / "runs", [])
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(PreflightError, match="GB left"):
        preflight.check_folders(tmp_path / "runs", [])


def test_a_node_that_differs_is_refused(tmp_path: Path) -> None:
    token, data = tmp_path / "run" / "token", tmp_path / "data"
    token.parent.mkdir()
    token.touch()
    paths = [str(token), str(data)]

    def compare(**changes: Any) -> None:
        seen = {**preflight.look_around(paths), **changes}
        preflight.compare_node("10.0.0.2", seen, paths, preflight.versions())

    with pytest.raises(PreflightError, match=r"10\.0\.0\.2 does not see .*data;"):
        compare()
    data.mkdir()
    compare()
    token.unlink()
    with pytest.raises(PreflightError, match=r"does not see .*run;"):
        compare()
    token.touch()
    with pytest.raises(PreflightError, match="disk left"):
        compare(free=0)
    other = {**preflight.versions(), "torch": "1.0"}
    with pytest.raises(PreflightError, match=r"torch 1\.0 \(here 2"):
        compare(versions=other)
