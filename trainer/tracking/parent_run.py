"""The parent run in MLflow of the runs that one `mealrec train` made: their table and their picture."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import RunStatus

from trainer.tracking.describe import group_description
from trainer.tracking.group import Group
from trainer.tracking.plots import comparison

KEY_TAG = "mealrec.key"
NOTE_TAG, PARENT_TAG = "mlflow.note.content", "mlflow.parentRunId"


def find_run(client: MlflowClient, experiment_id: str, key: str) -> str | None:
    """The id of the run that carries `key`: a request that timed out may have created it already."""
    for run in client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
        return str(run.info.run_id)
    return None


def open_parent(
    client: MlflowClient, experiment_id: str, group: Group, tags: dict[str, str], started: float | None
) -> str:
    """The id of the parent run of `group`, which the first of its runs makes."""
    if found := find_run(client, experiment_id, group.key):
        return found
    shared = {key: value for key, value in tags.items() if key.startswith("mlflow.") or key in ("dataset", "host")}
    return str(
        client.create_run(
            experiment_id,
            start_time=round(1000 * (started or time.time())),
            tags={**shared, KEY_TAG: group.key, "runs": str(len(group.folders))},
            run_name=group.name,
        ).info.run_id
    )


def update_parent(client: MlflowClient, parent_id: str, group: Group, status: str | None, ended: float) -> None:
    """Show what is tested so far. status: that the group ended with; None while it goes on."""
    reports = group.reports()
    client.set_tag(parent_id, NOTE_TAG, group_description(group.name, reports, len(group.folders)))
    if status is not None:
        client.set_terminated(parent_id, status, round(1000 * ended))
    else:
        client.update_run(parent_id, status=RunStatus.to_string(RunStatus.RUNNING))
    if reports:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "comparison.png"
            comparison(reports, group.name, picture)
            client.log_artifact(parent_id, str(picture))
