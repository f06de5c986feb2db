"""`mlflow.json` of a run folder: what MLflow has of the run already, and which of its runs that is."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from retrieval.files import write_json
from trainer.tracking.address import default_uri, redacted

NAME = "mlflow.json"


class MirrorState:
    """What is mirrored of one run folder to one tracker; saved whole after each change.

    `posted` keeps the highest step of each kind of event, not an offset: a resumed run rewinds and writes lines
    again, with another time, and those must not be posted a second time. `key` is a tag of the MLflow run, by which
    it is found where the answer to its creation was lost. `folder` tells a copy of a run folder, which gets an MLflow
    run of its own, from one that was moved. No address with a password is stored, and none of the store beside the
    runs, which moves with them.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        self._run_dir = run_dir.absolute()
        stored = "" if uri == default_uri(run_dir) else redacted(uri)
        before = read_state(run_dir)
        fresh = {"uri": stored, "experiment": experiment, "folder": str(self._run_dir), "started": None}
        same = before.get("uri") in (stored, redacted(uri)) and before.get("experiment") == experiment
        self.values: dict[str, Any] = {**_unknown(), "key": uuid.uuid4().hex, **(before if same else {}), **fresh}
        self.values["started"] = before.get("started")
        self.save()

    def save(self) -> None:
        """Write mlflow.json. Raises OSError."""
        write_json(self._run_dir / NAME, self.values)

    def forget(self) -> None:
        """The MLflow run is gone: another one, with everything, takes its place."""
        self.values |= {**_unknown(), "key": uuid.uuid4().hex}
        self.save()

    def posted(self, event: str) -> int:
        """The highest step of `event` that MLflow has; -1 for none."""
        return int(self.values["posted"].get(event, -1))

    def set_posted(self, event: str, step: int) -> None:
        """Note, without saving, that MLflow has `event` up to `step`."""
        self.values["posted"][event] = max(self.posted(event), step)


def _unknown() -> dict[str, Any]:
    return {"run_id": None, "experiment_id": None, "described": False, "posted": {}}


def read_state(run_dir: Path) -> dict[str, Any]:
    """mlflow.json of a run; empty where there is none, it cannot be read, or it came along with a copied folder."""
    with suppress(OSError, ValueError, TypeError):
        state = json.loads((run_dir / NAME).read_bytes())
        if {"uri", "experiment", "key", "run_id", "posted"} <= set(state) and not _is_copy(run_dir.absolute(), state):
            return {**_unknown(), **state}
    return {}


def _is_copy(run_dir: Path, state: dict[str, Any]) -> bool:
    folder = Path(state.get("folder") or run_dir)
    with suppress(OSError, ValueError):  # moved: there is nothing at the old place
        if not folder.samefile(run_dir):
            return bool(json.loads((folder / NAME).read_bytes()).get("key") == state["key"])
    return False
