"""A Ray head on this machine for a few jobs: on loopback and free ports, in a folder and a session of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.failures import PreflightError
from cluster.session import LOOPBACK, ROOT, private_environment, require_plain_path

_PORT_OPTIONS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--ray-client-server-port",
    "--node-manager-port",
    "--object-manager-port",
)
_START_S, _STOP_S = 120.0, 15.0
#: how long a job that is told to stop may save its work; Ray's own is 3 s
JOB_STOP_S = 60
#: names the head in the environment of all its processes, so that exactly these can be found again
_MARK = "MEALREC_RAY_HEAD"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Head:
    """A running head. address: for RAY_ADDRESS; jobs_url: for job submission.

    environment: what its processes have beyond ours (the token). mark: tells its processes, see `processes_of`.
    """

    address: str
    jobs_url: str
    mark: str
    environment: dict[str, str]


@contextmanager
def running(*, cpus: int, gpus: int = 0, cwd: Path = ROOT) -> Iterator[Head]:
    """A head with room for `cpus` and `gpus`, whose jobs run in `cwd`; it alone is stopped at the end.

    Raises PreflightError with the end of Ray's output if it does not start.
    """
    require_plain_path(sys.executable)
    # The path of a socket may have 107 bytes, of which Ray uses about 65: hence /tmp, not TMPDIR.
    folder = Path(tempfile.mkdtemp(prefix="mealrec-", dir="/tmp"))
    added = private_environment(os.environ)
    environment = {**os.environ, **added, _MARK: folder.name}
    environment.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(JOB_STOP_S))
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    ports = dict(zip(_PORT_OPTIONS, free_ports(len(_PORT_OPTIONS)), strict=True))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--dashboard-host", LOOPBACK, "--temp-dir", str(folder)),
        *("--num-cpus", str(cpus), "--num-gpus", str(gpus)),
        *(f"{option}={port}" for option, port in ports.items()),
    ]
    log = folder / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            start_new_session=True,  # Ctrl-C reaches the jobs through us, not Ray under them
        )
    try:
        jobs_url = f"http://{LOOPBACK}:{ports['--dashboard-port']}"
        _wait(process, jobs_url, log)
        yield Head(f"{LOOPBACK}:{ports['--port']}", jobs_url, folder.name, added)
    finally:
        _stop(process, folder.name)
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """In the new process: SIGTERM when the one that started it ends, however it ends (Linux; elsewhere nothing)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Distinct ports of the loopback interface that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until the job server answers; that it asks for a token (401) is an answer too."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return
        except OSError:
            pass
        time.sleep(0.2)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise PreflightError(f"the local Ray head did not start within {_START_S:g} s:\n{tail}")


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the head: politely, then its group, then whatever of it has left the group."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    end = time.monotonic() + _STOP_S
    while (left := processes_of(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(mark: str) -> list[int]:
    """Processes that were started by the head with this mark, zombies and those of other users left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                found.append(process.pid)
    return found
