"""Tracking of a run: `metrics.jsonl` is the truth, and a process of its own mirrors it to MLflow."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from trainer.tracking.metrics_log import MetricsLog

__all__ = ["MetricsLog", "Mirror", "Status", "start_mirror"]

Status = Literal["FINISHED", "FAILED"]

#: for the mirror's process; what the user's environment sets goes before
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the mirror retries by itself, and notices an end in between
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}

log = logging.getLogger(__name__)


class Mirror:
    """The process that mirrors one run to MLflow. Whatever happens to it, nothing is raised here."""

    def __init__(self, run_dir: Path, process: subprocess.Popen[bytes] | None) -> None:
        self._run_dir = run_dir
        self._process = process

    def close(self, timeout: float, status: Status = "FINISHED") -> bool:
        """Tell MLflow how the run ended; wait at most about `timeout` seconds until everything is there.

        Returns whether it is. If not, the process is ended, and a warning says how to sync later.
        """
        done = self._process is not None and self._end(self._process, timeout, status)
        if not done:
            log.warning(
                "MLflow does not have everything of this run (why: %s). Nothing is lost; sync it later with: "
                "mealrec track --run %s --runs-dir %s",
                self._run_dir / "mlflow.log",
                self._run_dir.name,
                self._run_dir.parent,
            )
        return done

    @staticmethod
    def _end(process: subprocess.Popen[bytes], timeout: float, status: Status) -> bool:
        try:
            process.communicate(status.encode() + b"\n", timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        except (OSError, ValueError):  # it died before, or was closed before
            process.wait()
        return process.returncode == 0


def start_mirror(run_dir: Path, uri: str, experiment: str) -> Mirror:
    """Start mirroring `run_dir` to the MLflow tracking server or store at `uri`; returns at once.

    Call it on rank 0, once config.yaml is written and metrics.jsonl is rewound. Never raises an error of the
    system: a mirror that cannot start is reported by `close`. The process ends by itself when this one dies.
    """
    run_dir = run_dir.absolute()
    package_root = str(Path(__file__).parents[2])
    environment = _ENVIRONMENT | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "trainer.tracking.mirror"]
    command += ["--run-dir", str(run_dir), "--uri", uri, "--experiment", experiment]
    try:
        with (run_dir / "mlflow.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                # a Ctrl-C in the terminal is for the run, which then tells the mirror
                start_new_session=True,
            )
    except OSError as error:
        log.warning("the MLflow mirror did not start: %s", error)
        return Mirror(run_dir, None)
    return Mirror(run_dir, process)
