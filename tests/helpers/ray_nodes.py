"""A second node for a Ray head on this machine: what a cluster of two machines is, as far as one machine can be it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import head

#: Ray gives a node 30 seconds to start, which is too short on a very busy machine
_ATTEMPTS, _STARTED = 4, "Ray runtime started."
_PORTS = (
    "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--runtime-env-agent-port",
    "--metrics-export-port", "--node-manager-port", "--object-manager-port",
)  # fmt: skip


@contextmanager
def node(of: head.Head, mark: str, cpus: int, log: Path) -> Iterator[None]:
    """Start a node with `cpus` under the head `of`. mark: of its processes, see `head.processes_of`. log: its output.

    What is left of it at the end of the block is killed: the node is as one that is switched off.
    """
    for _ in range(_ATTEMPTS):
        process = _start(of, mark, cpus, log)
        try:
            while process.poll() is None and _STARTED not in log.read_text(errors="replace"):
                time.sleep(0.2)
            if process.poll() is None:
                yield
                return
        finally:
            switch_off(mark)
            process.wait()
    raise AssertionError(log.read_text(errors="replace"))


def _start(of: head.Head, mark: str, cpus: int, log: Path) -> subprocess.Popen[bytes]:
    ports = dict(zip(_PORTS, head.free_ports(len(_PORTS)), strict=True))
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.helpers.ray_nodes", "start", "--block", "--disable-usage-stats"),
                *("--address", of.address, "--node-ip-address", head.LOOPBACK),
                *("--num-cpus", str(cpus), "--num-gpus", "0"),
                *(f"{option}={port}" for option, port in ports.items()),
            ],
            cwd=head.ROOT,
            env={**os.environ, **of.environment, head._MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def switch_off(mark: str) -> None:
    """Kill all processes of the node with this mark, the caller's own at last if it is one of them."""
    end = time.monotonic() + 20
    while (left := [pid for pid in head.processes_of(mark) if pid != os.getpid()]) and time.monotonic() < end:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if os.environ.get(head._MARK) == mark:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # Ray (2.60) starts no second node where it has to stay on loopback, see `cluster.session.private_environment`
    from ray._private import services
    from ray.scripts import scripts

    services.resolve_ip_for_localhost = lambda host: host
    scripts.ray_constants.ENABLE_RAY_CLUSTER = True
    scripts.cli()
