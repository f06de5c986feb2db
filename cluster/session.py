"""A connection to Ray for as long as it is needed: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from cluster.failures import PreflightError

LOOPBACK = "127.0.0.1"
#: the folder that holds our packages: workers import them from here, or from the job's working directory
ROOT = Path(__file__).resolve().parent.parent
#: set by Ray in the driver of a submitted job, or by the user
_CLUSTER_VARIABLES = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS")

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise a warning about CUDA_VISIBLE_DEVICES of CPU workers
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # we carry rank 0's output ourselves, see ray_train.py
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nothing scrapes them on a fresh machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2 s: how soon the end of a worker is noticed
    # of 30 s: on a busy machine a node's agent starts later, and Ray then ends the whole node
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives its connection must not start a Ray of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}


def on_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this process is the driver of a submitted job, or RAY_ADDRESS names a cluster."""
    return any(environment.get(name) for name in _CLUSTER_VARIABLES)


def private_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a Ray of our own starts with, on top of `environment`: loopback only, and token authentication.

    The token is only in the environment of the processes that need it and ends with them, unless the user has one
    already (variables or `~/.ray/auth_token`).
    """
    # The switch is meant for Windows and macOS. Without it, Ray replaces 127.0.0.1 by the machine's public address and
    # listens there (and on all interfaces), whatever address it is told (2.60).
    added = {**_QUIET, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    has_token = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not has_token and not (Path.home() / ".ray" / "auth_token").exists():
        added["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return added


@contextmanager
def connected(*, cpus: float, gpus: int) -> Iterator[None]:
    """Be connected to Ray inside the block; a Ray of our own has `cpus` and `gpus`, and ends with the block.

    Raises PreflightError if the cluster cannot be reached.
    """
    local = not on_a_cluster(os.environ)
    if local:
        require_plain_path(sys.executable)
    os.environ.update(private_environment(os.environ) if local else _QUIET)
    import ray  # reads the environment when imported

    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": _python_path()}},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if local:
        # Workers need CPUs to be counted for them, whether the machine has as many or not.
        options |= {"address": "local", "num_cpus": ceil(cpus), "num_gpus": gpus, "_node_ip_address": LOOPBACK}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        where = "the Ray cluster of RAY_ADDRESS" if not local else "a Ray on this machine"
        raise PreflightError(f"cannot connect to {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def require_plain_path(executable: str) -> None:
    """Ray (2.60) puts this path unquoted into shell commands. Raises PreflightError where that cannot work."""
    if any(character.isspace() for character in executable):
        raise PreflightError(
            f"Ray cannot start from a path with spaces ({executable}); use ./launch.sh, which goes around it, or make "
            "a link to the environment, ln -s .venv ~/mealrec-venv, and run ~/mealrec-venv/bin/python -m trainer.cli"
        )


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
