"""Connect to Ray: to the cluster of the job or of RAY_ADDRESS, or else to a Ray that we start on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from cluster import console
from cluster.failures import PreflightError

LOOPBACK = "127.0.0.1"
#: the folder that holds our packages: workers import them from here, or from the job's working directory
ROOT = Path(__file__).resolve().parent.parent
#: a file in the folder of each Ray session that we start: Ray leaves these folders, see `cluster.leftovers`
MARK = "started-by-mealrec"
#: for the logs of a Ray that we start
MIN_FREE_BYTES = 50_000_000
#: set by Ray in the driver of a submitted job, or by the user
_CLUSTER_VARIABLES = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS")

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns about CUDA_VISIBLE_DEVICES of CPU workers
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # we carry rank 0's output ourselves, see ray_train.py
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nothing collects them on a fresh machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2: how soon Ray notices that a worker ended
    # default 30000: on a busy machine a node's agent takes longer to start, and Ray would end the whole node
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives its connection must not start a Ray of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}


def on_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this process is the driver of a submitted job, or RAY_ADDRESS names a cluster."""
    return any(environment.get(name) for name in _CLUSTER_VARIABLES)


def private_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment` for a Ray that we start: it binds to loopback only and demands a token.

    We make a token unless the user has one already (variables or `~/.ray/auth_token`). Ours exists only in the
    environment of the processes that need it, and ends with them.
    """
    # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is meant for Windows and macOS. If it is not set, Ray (2.60) replaces 127.0.0.1
    # by the machine's public address and listens there and on all interfaces, whatever address we give.
    added = {**_RAY_SETTINGS, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    has_token = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not has_token and not (Path.home() / ".ray" / "auth_token").exists():
        added["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return added


#: what Ray (2.60) says when its node has not registered after 30 seconds, which no setting changes
_SLOW_START = "timed out during startup"


@contextmanager
def connected(*, cpus: float, gpus: int) -> Iterator[None]:
    """Connect to Ray for the block. Without a cluster, start a Ray with `cpus` and `gpus` that ends with the block.

    Raises PreflightError if the cluster cannot be reached.
    """
    local = not on_a_cluster(os.environ)
    if local:
        require_plain_path(sys.executable)
        require_room(temporary_folder(), ", or name another folder by the variable RAY_TMPDIR")
    os.environ.update(private_environment(os.environ) if local else _RAY_SETTINGS)
    import ray  # reads the environment when imported

    level = console.library_level(logging.ERROR)
    logging.getLogger("ray").setLevel(level)
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": _python_path(), console.VARIABLE: console.verbosity().name}},
        "log_to_driver": False,
        "logging_level": level,
    }
    if local:
        # Ray only counts CPUs: we declare as many as the workers reserve, even if the machine has fewer.
        options |= {"address": "local", "num_cpus": ceil(cpus), "num_gpus": gpus, "_node_ip_address": LOOPBACK}
        # the dashboard takes a third of the start (13 s against 9 on 2 cores), and few look at a Ray that soon ends
        options["include_dashboard"] = False
    try:
        context = ray.init(**options)
        if local:
            (Path(context.address_info["session_dir"]) / MARK).touch()
    except Exception as error:
        slow = _SLOW_START in str(error)  # of no class of its own
        if not slow and not isinstance(error, ConnectionError | RuntimeError):
            raise
        where = "the Ray cluster of RAY_ADDRESS" if not local else "a Ray on this machine"
        advice = ". Is the machine very busy? Try again when it is less so" if slow else ""
        raise PreflightError(f"cannot connect to {where}: {error}{advice}") from error
    try:
        yield
    finally:
        ray.shutdown()


def require_plain_path(executable: str) -> None:
    """Raise PreflightError if `executable` has spaces: Ray (2.60) puts this path unquoted into shell commands."""
    if any(character.isspace() for character in executable):
        raise PreflightError(
            f"Ray cannot start from a path with spaces ({executable}); use ./launch.sh, which avoids this, or make "
            "a link to the environment, ln -s .venv ~/mealrec-venv, and run ~/mealrec-venv/bin/python -m trainer.cli"
        )


def temporary_folder() -> Path:
    """Where a Ray that we start has its sessions, as Ray itself chooses."""
    other = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    return Path(os.environ.get("RAY_TMPDIR") or other or "/tmp")


def require_room(folder: Path, or_else: str = "") -> None:
    """Raise PreflightError if a Ray that we start has no room in `folder`: Ray itself only says that it timed out.

    or_else: another way out than to make room, for the message.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise PreflightError(
            f"the disk of {folder} has {free / 1e6:,.1f} MB left, and Ray needs {MIN_FREE_BYTES / 1e6:,.0f} MB there; "
            f"make room{or_else}"
        )


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
