"""Tracking of a run: `metrics.jsonl` is the truth, and a process of its own mirrors it to MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cluster import console
from models.errors import UserError
from retrieval.files import refuse_link
from trainer.tracking.address import credentials, on_shared_storage, runs_page, tracker
from trainer.tracking.describe import command_for
from trainer.tracking.group import write_group
from trainer.tracking.metrics_log import MetricsLog
from trainer.tracking.state import read_state

__all__ = ["ENVIRONMENT", "REFUSED", "MetricsLog", "Mirror", "Status", "start_mirror", "where_runs_are", "write_group"]

Status = Literal["FINISHED", "FAILED"]

#: what the mirror's last message begins with if trying again cannot help
REFUSED = "MLflow does not take this run"
#: for every process of ours that imports MLflow; what the user's environment sets goes before
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the mirror retries by itself, and a user at a command is told at once
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
#: for the mirror's process
_OF_MIRROR = {**ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


class Mirror:
    """The process that mirrors one run to MLflow. Whatever happens to it, nothing is raised here.

    `told`: what it said last of MLflow's failures; the user is warned when it says it.
    """

    def __init__(
        self, run_dir: Path, process: subprocess.Popen[bytes] | None, warn: Callable[[str], None], sync: str
    ) -> None:
        self._run_dir, self._process, self._warn, self._sync = run_dir, process, warn, sync
        self.told = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def close(self, timeout: float, status: Status = "FINISHED") -> bool:
        """Tell MLflow how the run ended; wait at most about `timeout` seconds until everything is there.

        Returns whether it is. If not, the process is ended, and for a run that was running a warning says how to sync
        later.
        """
        done = self._process is not None and self._end(self._process, timeout, status)
        if not done and self._sync:
            self._warn(
                f"MLflow does not have everything of this run (why: {self._run_dir / 'mlflow.log'}). Nothing is lost; "
                f"sync it later with: {self._sync}"
            )
        return done

    def _end(self, process: subprocess.Popen[bytes], timeout: float, status: Status) -> bool:
        if process.stdin is not None and not process.stdin.closed:
            with suppress(OSError):  # it died before
                process.stdin.write(status.encode() + b"\n")
                process.stdin.flush()
            with suppress(OSError):
                process.stdin.close()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._listener.join(1.0)
        return process.returncode == 0

    def _listen(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with suppress(OSError, ValueError), self._process.stdout as lines:
            for line in lines:
                self.told = line.decode(errors="replace").strip()
                self._warn(self.told)


def start_mirror(
    run_dir: Path,
    uri: str = "",
    experiment: str = "",
    *,
    running: bool = True,
    study: str = "",
    warn: Callable[[str], None] = console.warn,
) -> Mirror:
    """Start mirroring `run_dir` to the MLflow tracking server or store at `uri`; returns at once.

    uri, experiment: where empty, MLflow's own variables of the environment count, else mlflow.db beside the runs and
    "mealrec". running: the run goes on now; otherwise it has ended, and its times are those of its lines.
    study: `run_dir` is the folder of a study, whose runs are mirrored; the command that goes on with it.
    warn: shows what the user should see; called from a thread of its own too.
    Call it on rank 0, once config.yaml is written and metrics.jsonl is rewound. Never raises an error of the
    system: a mirror that cannot start is reported by `close`. The process ends by itself when this one dies.
    """
    run_dir = run_dir.absolute()
    where = tracker(run_dir, uri, experiment)
    if kind := on_shared_storage(where.uri):
        warn(
            f"MLflow's SQLite store is on shared storage ({kind}), where its locks can fail: for more than one run at "
            f"a time start `mlflow server` on one machine and name it by tracking.uri (docs/mlflow.md): {where.shown}"
        )
    command = [sys.executable, "-m", "trainer.tracking.mirror", "--run-dir", str(run_dir)]
    command += ["--study"] if study else ["--started", str(time.time())] if running else []
    sync = study or (command_for("track", run_dir) if running else "")
    try:
        refuse_link(run_dir / "mlflow.log")
        with (run_dir / "mlflow.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_environment(where.uri, where.experiment),
                # a Ctrl-C in the terminal is for the run, which then tells the mirror
                start_new_session=True,
            )
    except (OSError, UserError) as error:
        warn(f"the MLflow mirror did not start: {error}")
        return Mirror(run_dir, None, warn, sync)
    return Mirror(run_dir, process, warn, sync)


def _environment(uri: str, experiment: str) -> dict[str, str]:
    """Of the mirror's process: addresses may hold a password, which other users could read among its arguments."""
    plain, secrets = credentials(uri)
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    named = {"MLFLOW_TRACKING_URI": plain, "MLFLOW_EXPERIMENT_NAME": experiment, "PYTHONPATH": path}
    return _OF_MIRROR | os.environ | secrets | named


def where_runs_are(run_dir: Path, uri: str = "", experiment: str = "", *, of: Path | None = None) -> str:
    """How to see in MLflow the run that was mirrored with these; empty where MLflow does not have it.

    of: the run, where `run_dir` is the folder of its study.
    """
    found = read_state(of or run_dir).get("experiment_id")
    return runs_page(tracker(run_dir, uri, experiment).uri, str(found)) if found else ""
