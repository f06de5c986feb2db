"""The process that mirrors the `metrics.jsonl` of one run, or of all runs of a study, to MLflow.

Started by `trainer.tracking.start_mirror`. It reads the run's files and writes only `mlflow.json` (what MLflow has
already) and `mlflow.log`, so a tracker that is down, slow or wrong cannot touch the run. The address and the experiment
come by the environment, as other users see the arguments of a process. Its standard input carries one line, the status
that the run ended with; end of file without it means that the run was killed. Its standard output carries lines that
the user of the run should see.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from retrieval.files import locked
from trainer.tracking import REFUSED
from trainer.tracking.address import redacted
from trainer.tracking.publisher import Publisher
from trainer.tracking.store import BUGS, permanent, reason, unreachable
from trainer.tracking.study_publisher import StudyPublisher

POLL_S = 0.5
FIRST_RETRY_S, LONGEST_RETRY_S, CLOSING_RETRY_S = 0.5, 30.0, 2.0
#: for how long a mirror whose run was killed tries to say so
GRACE_S = 30.0
#: for how long, at the end of a run, an address is tried that never answered in its time
UNREACHED_S = 5.0
DONE, UNDONE, HOPELESS = 0, 1, 3

log = logging.getLogger("mealrec.mirror")


class Posting(Protocol):
    """What the mirror keeps up to date: `Publisher` for one run, `StudyPublisher` for many."""

    def sync(self) -> None:
        """Post what is new."""

    def finish(self, status: str) -> None:
        """Post the end."""


class Parent:
    """The run that is mirrored: says how it ended, or dies."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._said = b""

    def wait(self, seconds: float) -> str | None:
        """The status the run ended with, as soon as it is known; None if it still goes on after `seconds`."""
        if select.select([0], [], [], seconds)[0]:
            chunk = os.read(0, 64)
            self._said += chunk
            if self._said.endswith(b"\n"):
                return self._said.decode().strip()
            if not chunk:
                return "KILLED"
        # forked readers of the run may hold our input open for longer than the run lives
        return "KILLED" if self.gone() else None

    def gone(self) -> bool:
        return os.getppid() != self._pid

    @staticmethod
    def tell(message: str) -> None:
        """Show `message` to the user of the run, if there still is one."""
        log.warning("%s", message)
        with suppress(OSError):
            os.write(1, f"{message}\n".encode())


class Outage:
    """The time in which MLflow fails, told once when it begins and once when it ends."""

    def __init__(self, parent: Parent, uri: str, *, running: bool) -> None:
        self._parent, self._uri, self._running = parent, uri, running
        self._since = 0.0
        self.delay = 0.0
        self.reached = False

    def begin(self, error: Exception) -> None:
        if not self._since:
            self._since, self.delay = time.monotonic(), FIRST_RETRY_S / 2
            self._parent.tell(
                f"MLflow fails at {redacted(self._uri)} ({reason(error, self._uri)}); this is tried again"
                + (", and the run goes on" if self._running else "")
            )
        self.reached = self.reached or not unreachable(error)
        self.delay = min(2 * self.delay, LONGEST_RETRY_S)

    def end(self) -> None:
        if self._since:
            self._parent.tell(f"MLflow answers again after {time.monotonic() - self._since:.0f} s")
        self._since, self.delay, self.reached = 0.0, POLL_S, True


def follow(publisher: Posting, parent: Parent, uri: str, *, running: bool = True) -> int:
    """Mirror until the run has ended and everything is posted; the exit status. Retries with growing delays.

    running: whether the run (or the study) goes on now.
    """
    status: str | None = None
    deadline, outage = float("inf"), Outage(parent, uri, running=running)
    while time.monotonic() < deadline:
        if status is None:
            status = parent.wait(outage.delay)
        else:
            time.sleep(min(outage.delay, CLOSING_RETRY_S))
        if deadline == float("inf") and (status == "KILLED" or parent.gone()):
            deadline = time.monotonic() + GRACE_S  # nobody is left to end us
        try:
            publisher.sync()
            if status is not None:
                publisher.finish(status)
        except Exception as error:  # whatever mlflow, its stores and its HTTP client raise: the mirror outlives it
            if permanent(error):
                parent.tell(f"{REFUSED}: {reason(error, uri)}")
                if type(error) in BUGS:
                    log.warning("", exc_info=redacted(uri) == uri)  # a traceback may show what it works on
                return HOPELESS
            outage.begin(error)
            if status is not None and not outage.reached:
                deadline = min(deadline, time.monotonic() + UNREACHED_S)
            continue
        outage.end()
        if status is not None:
            return DONE
    return UNDONE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.tracking.mirror", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--study", action="store_true", help="the folder is that of a study, with one for each run")
    parser.add_argument("--started", type=float, help="Unix seconds; left out for a run that is not running")
    args = parser.parse_args()
    uri, experiment = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_EXPERIMENT_NAME"]
    parent = Parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for noisy in ("mlflow", "alembic", "urllib3", "sqlalchemy", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with suppress(OSError):
        os.nice(10)
    with locked(args.run_dir / ".mlflow.lock"):  # the mirror of a killed run may still be busy
        posting: Posting
        if args.study:
            posting = StudyPublisher(args.run_dir, uri, experiment)
        else:
            posting = Publisher(args.run_dir, uri, experiment, args.started)
        return follow(posting, parent, uri, running=args.study or args.started is not None)


if __name__ == "__main__":
    sys.exit(main())
