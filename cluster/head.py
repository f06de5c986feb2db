"""Start and stop a Ray head on this machine, on loopback and free ports, in a temporary folder of its own."""

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
from cluster.session import LOOPBACK, ROOT, private_environment, require_plain_path, require_room

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
#: The path of a socket has at most 107 bytes, and Ray uses about 65 of them: /tmp is short, TMPDIR may be long.
PLACE, PREFIX, LOG = "/tmp", "mealrec-", "head.log"
#: seconds that a job has to save its work when it is told to stop; Ray's own limit is 3 s
JOB_STOP_S = 60
#: environment variable that holds the head's mark: all its processes inherit it, so that we can find exactly these
_MARK = "MEALREC_RAY_HEAD"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Head:
    """A running head. address: a value for RAY_ADDRESS. jobs_url: the URL to submit jobs to.

    mark: identifies the processes of this head, see `processes_of`. environment: variables that the head has in
    addition to ours, such as the token.
    """

    address: str
    jobs_url: str
    mark: str
    environment: dict[str, str]


@contextmanager
def running(*, cpus: int, gpus: int = 0, cwd: Path = ROOT) -> Iterator[Head]:
    """Start a head with `cpus` and `gpus`, whose jobs run in `cwd`. At the end stop this head, and no other Ray.

    Raises PreflightError with the end of Ray's output if it does not start.
    """
    require_plain_path(sys.executable)
    require_room(Path(PLACE))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
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
    log = folder / LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            start_new_session=True,  # Ctrl-C must reach us, so that we stop the job, and not Ray
        )
    try:
        jobs_url = f"http://{LOOPBACK}:{ports['--dashboard-port']}"
        _wait(process, jobs_url, log)
        yield Head(f"{LOOPBACK}:{ports['--port']}", jobs_url, folder.name, added)
    finally:
        _stop(process, folder.name)
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Runs in the new process: it will get SIGTERM when its parent ends, for whatever reason. Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """`count` distinct ports of the loopback interface that no process listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the job server answers; a refusal without a token (401, 403) is an answer too."""
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
    """End the head by SIGTERM; else kill its process group, then those of its processes that left the group."""
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
    """Ids of the processes that the head with this mark started, without zombies and processes of other users."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                found.append(process.pid)
    return found
