"""Brings one MLflow run up to date with one run folder, as often as it is asked to, each point once."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunStatus
from mlflow.exceptions import MlflowException

from trainer.tracking import describe
from trainer.tracking.address import sqlite_path
from trainer.tracking.group import read_group
from trainer.tracking.metrics_log import read_lines
from trainer.tracking.parent_run import KEY_TAG, NOTE_TAG, PARENT_TAG, find_run, open_parent, update_parent
from trainer.tracking.plots import learning_curves
from trainer.tracking.state import MirrorState
from trainer.tracking.store import PermanentError, gone, make_store

#: limits of MLflow's tracking API
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
ARTIFACTS = ("config.yaml", "valid.json", "test.json", "metrics.jsonl")
#: a checkpoint's weights up to this size are logged; of larger ones only where they lie
MODEL_BYTES = 50 << 20
#: counts and settings among the test figures
_NO_METRICS = ("users", "seconds", "index")


class Publisher:
    """One run folder and its run in MLflow; the run folder is only read, but for mlflow.json.

    started: when the run that goes on now was started; None for one that is not running. with_parent: whether the
    end of the run brings the run above it up to date, too.
    """

    def __init__(
        self, run_dir: Path, uri: str, experiment: str, started: float | None, *, with_parent: bool = True
    ) -> None:
        self._run_dir, self._uri, self._experiment = run_dir, uri, experiment
        self._live, self._with_parent = started is not None, with_parent
        self._state = MirrorState(run_dir, uri, experiment)
        self._state.values["started"] = self._state.values["started"] or started
        self._group = read_group(run_dir)
        self._parent_id: str | None = None
        self._client: MlflowClient | None = None
        self._offset = 0
        self._waiting: list[dict[str, Any]] = []
        self._ended: float | None = None

    def sync(self) -> None:
        """Post what is new. Raises whatever mlflow raises; to be called again then."""
        self._again_if_gone(self._post)

    def finish(self, status: str) -> None:
        """Set the run's status, its end and description, then add the artifacts, which some servers cannot take."""
        self._again_if_gone(lambda: self._finish(status))

    def update_parent(self, status: str | None) -> None:
        """Show in the run above this one, if there is one, what is tested so far. status: as `parent_run` says."""
        client = self._client or self._open()
        if self._group and self._parent_id:
            update_parent(client, self._parent_id, self._group, status, self._ended or time.time())

    def _again_if_gone(self, work: Callable[[], None]) -> None:
        try:
            work()
        except MlflowException as error:
            if not gone(error):
                raise
            self._client = None  # a new run takes the place of one that was deleted
            self._post()
            work()

    @property
    def _run_id(self) -> str:
        return str(self._state.values["run_id"])

    def _post(self) -> None:
        client = self._client or self._open()
        path = self._run_dir / "metrics.jsonl"
        if path.exists():
            lines, self._offset = read_lines(path, self._offset)
            self._waiting += lines
        while self._waiting:
            count, metrics = self._next_batch()
            if metrics:
                client.log_batch(self._run_id, metrics=metrics)
            for line in self._waiting[:count]:
                self._state.set_posted(line["event"], line["step"])
            self._state.save()
            del self._waiting[:count]

    def _finish(self, status: str) -> None:
        client = self._client or self._open()
        lines = self._lines()
        if self._ended is None:
            told = lines and (lines[-1]["event"] == "end" or not self._live)
            self._ended = lines[-1]["time"] if told else time.time()
        client.set_terminated(self._run_id, status, round(1000 * self._ended))
        config = describe.read_config(self._run_dir)
        client.set_tag(self._run_id, NOTE_TAG, describe.description(self._run_dir, config))
        for name in ARTIFACTS:
            if (self._run_dir / name).exists():
                client.log_artifact(self._run_id, str(self._run_dir / name))
        self._log_model(client)
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "learning_curves.png"
            if learning_curves(lines, self._run_dir.name, picture):
                client.log_artifact(self._run_id, str(picture))
        if self._with_parent and self._group:  # one failed run ends the whole `train`; else it ends with its last run
            self.update_parent(status if status != "FINISHED" or self._group.ended() else None)

    def _log_model(self, client: MlflowClient) -> None:
        """The weights of the newest checkpoint where they are small; always where they lie, and how to export them."""
        store = self._run_dir / "checkpoints"
        steps = sorted(path for path in store.glob("step-*") if (path / "manifest.json").exists())
        best = _best(steps)
        if best is None:
            return
        weights = best / "model.safetensors"
        reference = {
            "checkpoint": str(best),
            "bytes": weights.stat().st_size,
            "export": describe.command_for("export", self._run_dir, "--out", "FOLDER"),
        }
        client.log_dict(self._run_id, reference, "model/model.json")
        if 1024 < weights.stat().st_size <= MODEL_BYTES:
            client.log_artifact(self._run_id, str(weights), "model")

    def _open(self) -> MlflowClient:
        """A client, after the run exists and has its parameters, tags and dataset."""
        make_store(self._uri)
        client = MlflowClient(self._uri)
        values = self._state.values
        values["experiment_id"] = self._experiment_id(client)
        if values["run_id"] is not None and not _active(client, self._run_id):
            self._state.forget()
            values["experiment_id"] = self._experiment_id(client)
            self._offset, self._waiting = 0, []
        if values["run_id"] is None:
            self._create(client)
        if self._live:
            client.update_run(self._run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        if self._group:
            tags = describe.tags(self._run_dir, describe.read_config(self._run_dir))
            self._parent_id = open_parent(client, values["experiment_id"], self._group, tags, values["started"])
            client.set_tag(self._run_id, PARENT_TAG, self._parent_id)
            if self._live:
                client.update_run(self._parent_id, status=RunStatus.to_string(RunStatus.RUNNING))
        if not values["described"]:
            self._describe(client)
            values["described"] = True
        self._state.save()
        self._client = client
        return client

    def _experiment_id(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return str(client.create_experiment(self._experiment, _artifact_location(self._uri, self._experiment)))
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise PermanentError(
                f"the experiment {self._experiment!r} was deleted in MLflow: bring it back (mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}), or name another by tracking.experiment"
            )
        return str(experiment.experiment_id)

    def _create(self, client: MlflowClient) -> None:
        values = self._state.values
        values["started"] = values["started"] or _started(self._lines())
        found = find_run(client, values["experiment_id"], values["key"])
        if found is None:
            tags = describe.tags(self._run_dir, describe.read_config(self._run_dir))
            start = round(1000 * (values["started"] or time.time()))
            tags[KEY_TAG] = values["key"]
            created = client.create_run(values["experiment_id"], start, tags, self._run_dir.name)
            found = str(created.info.run_id)
        values["run_id"] = found
        self._state.save()

    def _describe(self, client: MlflowClient) -> None:
        config = describe.read_config(self._run_dir)
        every = iter([Param(key, value) for key, value in describe.parameters(self._run_dir.name, config).items()])
        while params := list(islice(every, PARAMS_PER_BATCH)):
            client.log_batch(self._run_id, params=params)
        if data := describe.dataset(config):
            dataset = Dataset(data.name, data.digest, "local", data.source, profile=data.profile)
            context = InputTag("mlflow.data.context", "training")
            client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, [context])])
        client.set_tag(self._run_id, NOTE_TAG, describe.description(self._run_dir, config))

    def _lines(self) -> list[dict[str, Any]]:
        path = self._run_dir / "metrics.jsonl"
        return read_lines(path, 0)[0] if path.exists() else []

    def _next_batch(self) -> tuple[int, list[Metric]]:
        """As many waiting lines as fit a request, at least one, and their metrics that were not posted yet."""
        metrics: list[Metric] = []
        for count, line in enumerate(self._waiting):
            new = _metrics(line) if line["step"] > self._state.posted(line["event"]) else []
            if count and len(metrics) + len(new) > METRICS_PER_BATCH:
                return count, metrics
            metrics += new
        return len(self._waiting), metrics


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    """Figures of the end have step 0: MLflow then draws bars, where it would draw curves of one point."""
    prefix = "test/" if line["event"] == "test" else ""
    values = [(prefix + key, value) for key, value in describe.flat(line["metrics"], "/")]
    step = line["step"]
    if line["event"] == "epoch":
        values.append(("epoch", line["epoch"]))
    else:
        step = 0
    when = round(line["time"] * 1000)
    return [
        Metric(describe.api_name(key), float(value), when, step)
        for key, value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and not set(key.split("/")) & {*_NO_METRICS}
    ]


def _started(lines: list[dict[str, Any]]) -> float | None:
    """When a run was started, from its first line: an epoch's is written at its end."""
    if not lines:
        return None
    took = sum(float(lines[0]["metrics"].get(key) or 0.0) for key in ("train_seconds", "valid_seconds"))
    return float(lines[0]["time"]) - took


def _best(steps: list[Path]) -> Path | None:
    """The checkpoint that is best on validation, of those on the disk."""
    if not steps:
        return None
    best = json.loads((steps[-1] / "state.json").read_bytes())["stopping"]["best_step"]
    return next((step for step in steps if int(step.name.partition("-")[2]) == best), None)


def _active(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if gone(error):
            return False
        raise


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Next to an sqlite file, where mlflow would use the working directory; elsewhere the server decides."""
    path = sqlite_path(uri)
    return None if path is None else (path.absolute().parent / "mlartifacts" / describe.api_name(experiment)).as_uri()
