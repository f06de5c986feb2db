"""Brings MLflow up to date with all runs of a study, as `Publisher` does with one run."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.tracking.group import NAME as GROUP
from trainer.tracking.metrics_log import read_lines
from trainer.tracking.publisher import Publisher
from trainer.tracking.study_files import FAILURE, STOPPED

#: files by which a study notes that a run ended without a result, and the status of such a run
ENDED_BADLY = {FAILURE: "FAILED", STOPPED: "KILLED"}
#: how often the run above all others is brought up to date: that reads the result of each of them
_PARENT_EVERY_S = 60.0


class StudyPublisher:
    """The runs in the folder of a study: those whose folder says that they belong to a group. It is only read."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._publishers: dict[Path, Publisher] = {}
        self._closed: dict[Path, tuple[float, int]] = {}  # as metrics.jsonl was then
        self._parent_updated = time.monotonic()

    def sync(self) -> None:
        """Post what is new of every run; of one that has ended also its end. Raises whatever mlflow raises."""
        for run in sorted(path.parent for path in self._folder.glob(f"*/{GROUP}")):
            if not (run / "config.yaml").exists() or self._closed.get(run) == _seen(run):
                continue
            status = ended(run)
            if run in self._closed:  # it goes on: a chosen run is tested when all have been validated
                del self._closed[run], self._publishers[run]
            if run not in self._publishers:
                started = time.time() if status is None else None
                self._publishers[run] = Publisher(run, self._uri, self._experiment, started, with_parent=False)
            seen = _seen(run)
            self._publishers[run].sync()
            if status is not None:
                self._publishers[run].finish(status)
                self._closed[run] = seen
        if time.monotonic() - self._parent_updated > _PARENT_EVERY_S:
            self._update_parent(None)

    def finish(self, status: str) -> None:
        """End the runs that are still open in MLflow, and the run above all of them."""
        for run, publisher in self._publishers.items():
            if run not in self._closed:
                publisher.finish(ended(run) or "FAILED")
                self._closed[run] = _seen(run)
        self._update_parent(status)

    def _update_parent(self, status: str | None) -> None:
        for publisher in list(self._publishers.values())[:1]:  # they have the same
            publisher.update_parent(status)
        self._parent_updated = time.monotonic()


def ended(run: Path) -> str | None:
    """The status in MLflow of a run that has ended; None while it goes on."""
    for name, status in ENDED_BADLY.items():
        if (run / name).exists():
            return status
    path = run / "metrics.jsonl"
    lines = read_lines(path, 0)[0] if path.exists() else []
    return "FINISHED" if lines and lines[-1]["event"] == "end" else None


def _seen(run: Path) -> tuple[float, int]:
    path = run / "metrics.jsonl"
    marks = sum((run / name).exists() for name in ENDED_BADLY)
    if not path.exists():
        return 0.0, marks
    status = path.stat()
    return status.st_mtime, status.st_size + marks
