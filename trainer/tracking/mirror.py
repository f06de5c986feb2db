"""The process that mirrors the `metrics.jsonl` of one run to MLflow; the one file that imports mlflow.

Started by `trainer.tracking.start_mirror`. It reads the run's files and writes only `mlflow.json` (what MLflow has
already) and `mlflow.log`, so a tracker that is down, slow or wrong cannot touch the run. Its standard input carries one
line, the status that the run ended with; end of file without it means that the run was killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus

from retrieval.files import digest, locked, write_json
from trainer.tracking.metrics_log import read_lines

POLL_S = 0.5
FIRST_RETRY_S, LONGEST_RETRY_S, CLOSING_RETRY_S = 0.5, 30.0, 2.0
#: for how long a mirror whose run was killed tries to say so
GRACE_S = 30.0
#: limits of MLflow's tracking API
METRICS_PER_BATCH, PARAMS_PER_BATCH, KEY_LENGTH, DIGEST_LENGTH = 1000, 100, 250, 36
VALUE_LENGTH = 500
KEY_TAG = "mealrec.key"
ARTIFACTS = ("config.yaml", "valid.json", "test.json")

log = logging.getLogger("mealrec.mirror")


def make_store(uri: str) -> None:
    """Make the SQLite store of `uri`, whole or not at all, where it does not exist; nothing for any other store.

    MLflow makes its tables in some 60 migrations; a store whose maker was killed among them is refused for ever after.
    """
    scheme, _, name = uri.partition(":///")
    path = Path(name.partition("?")[0])
    if scheme != "sqlite" or path.exists():
        return
    with locked(path.parent / f".{path.name}.lock"):
        if path.exists():  # by who held the lock before
            return
        new = path.with_name(f".{path.name}.new")
        for left in (new, new.with_name(f"{new.name}-journal")):  # by one that was killed
            left.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        new.replace(path)


class Publisher:
    """Brings one MLflow run up to date with one run folder, as often as it is asked to, each point once.

    `mlflow.json` keeps the highest step posted of each kind of event, not an offset: a resumed run rewinds and writes
    lines again, with another time, and those must not be posted a second time.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        self._run_dir, self._uri, self._experiment = run_dir, uri, experiment
        self._state_path = run_dir / "mlflow.json"
        self._state = self._load_state()
        self._save_state()
        self._client: MlflowClient | None = None
        self._offset = 0
        self._waiting: list[dict[str, Any]] = []

    def sync(self) -> None:
        """Post what is new. Raises whatever mlflow raises; to be called again then."""
        client = self._client or self._open()
        path = self._run_dir / "metrics.jsonl"
        if path.exists():
            lines, self._offset = read_lines(path, self._offset)
            self._waiting += lines
        while self._waiting:
            count, metrics = self._next_batch()
            if metrics:
                client.log_batch(self._state["run_id"], metrics=metrics)
            for line in self._waiting[:count]:
                self._state["posted"][line["event"]] = max(self._posted(line["event"]), line["step"])
            self._save_state()
            del self._waiting[:count]

    def finish(self, status: str) -> None:
        """Set the run's status, then add the artifacts, which some servers cannot take."""
        client = self._client or self._open()
        client.set_terminated(self._state["run_id"], status)
        for name in ARTIFACTS:
            if (self._run_dir / name).exists():
                client.log_artifact(self._state["run_id"], str(self._run_dir / name))

    def _open(self) -> MlflowClient:
        """A client, after the run exists and has its parameters, tags and dataset."""
        make_store(self._uri)
        client = MlflowClient(self._uri)
        if self._state["run_id"] is None:
            self._state["run_id"] = self._find_or_create(client)
            self._save_state()
        run_id = self._state["run_id"]
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        if not self._state["described"]:
            config = _config(self._run_dir)
            values = iter([Param(_name(key), _cut(value)) for key, value in _flat(config, ".")])
            while params := list(islice(values, PARAMS_PER_BATCH)):
                client.log_batch(run_id, params=params)
            if dataset := _dataset(config):
                client.log_inputs(run_id, datasets=[dataset])
            self._state["described"] = True
            self._save_state()
        self._client = client
        return client

    def _find_or_create(self, client: MlflowClient) -> str:
        """The id of the MLflow run that carries our key: a request that timed out may have created it already."""
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            experiment_id = client.create_experiment(self._experiment, _artifact_location(self._uri, self._experiment))
        else:
            experiment_id = experiment.experiment_id
        key = self._state["key"]
        for run in client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
            return str(run.info.run_id)
        tags = {KEY_TAG: key}
        if revision := _git_revision():
            tags["mlflow.source.git.commit"] = revision
        return str(client.create_run(experiment_id, tags=tags, run_name=self._run_dir.name).info.run_id)

    def _next_batch(self) -> tuple[int, list[Metric]]:
        """As many waiting lines as fit a request, at least one, and their metrics that were not posted yet."""
        metrics: list[Metric] = []
        for count, line in enumerate(self._waiting):
            new = _metrics(line) if line["step"] > self._posted(line["event"]) else []
            if count and len(metrics) + len(new) > METRICS_PER_BATCH:
                return count, metrics
            metrics += new
        return len(self._waiting), metrics

    def _posted(self, event: str) -> int:
        return int(self._state["posted"].get(event, -1))

    def _load_state(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            state = json.loads(self._state_path.read_bytes())
            if state["uri"] == self._uri and state["experiment"] == self._experiment:
                return dict(state)
        key = uuid.uuid4().hex
        state = {"uri": self._uri, "experiment": self._experiment, "key": key}
        return {**state, "run_id": None, "described": False, "posted": {}}

    def _save_state(self) -> None:
        write_json(self._state_path, self._state)


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


def follow(publisher: Publisher, parent: Parent) -> bool:
    """Mirror until the run has ended and everything is posted; whether it is. Retries with growing delays."""
    status: str | None = None
    deadline, delay, down_since = float("inf"), 0.0, 0.0
    while time.monotonic() < deadline:
        if status is None:
            status = parent.wait(delay)
        else:
            time.sleep(min(delay, CLOSING_RETRY_S))
        if deadline == float("inf") and (status == "KILLED" or parent.gone()):
            deadline = time.monotonic() + GRACE_S  # nobody is left to end us
        try:
            publisher.sync()
            if status is not None:
                publisher.finish(status)
        except Exception as error:  # whatever mlflow, its stores and its HTTP client raise: the mirror outlives it
            if not down_since:
                down_since, delay = time.monotonic(), FIRST_RETRY_S / 2
                log.warning("MLflow fails; the run goes on, this is tried again: %s", _one_line(error))
            delay = min(2 * delay, LONGEST_RETRY_S)
            continue
        if down_since:
            log.warning("MLflow answers again after %.0f s", time.monotonic() - down_since)
        if status is not None:
            return True
        delay, down_since = POLL_S, 0.0
    return False


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    prefix = "test/" if line["event"] == "test" else ""
    values = [(prefix + key, value) for key, value in _flat(line["metrics"], "/")]
    if line["event"] == "epoch":
        values.append(("epoch", line["epoch"]))
    when = round(line["time"] * 1000)
    return [
        Metric(_name(key), float(value), when, line["step"])
        for key, value in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _flat(tree: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}{separator}{rest}", leaf) for rest, leaf in _flat(value, separator))
        else:
            yield str(key), value


def _name(key: str) -> str:
    """`key` as MLflow allows it: HR@10 becomes HR_at_10."""
    return re.sub(r"[^\w./ -]", "_", key.replace("@", "_at_"))[:KEY_LENGTH]


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."


def _config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text()) if path.exists() else {}
    return config if isinstance(config, dict) else {}


def _dataset(config: Mapping[str, Any]) -> DatasetInput | None:
    """The manifest of the data that the run is trained on, if it is where the configuration says."""
    path = Path(str((config.get("data") or {}).get("path"))) / "manifest.json"
    if not path.exists():
        return None
    data = path.read_bytes()
    manifest = json.loads(data)
    counts = {key: manifest.get(key) for key in ("users", "items", "interactions", "train_rows")}
    short = digest(data)[:DIGEST_LENGTH]
    source = json.dumps({"uri": str(path.absolute())})
    dataset = Dataset(path.parent.name, short, "local", source, profile=json.dumps(counts))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Next to an sqlite file, where mlflow would use the working directory; elsewhere the server decides."""
    scheme = "sqlite:///"
    if not uri.startswith(scheme):
        return None
    return (Path(uri.removeprefix(scheme)).absolute().parent / "mlartifacts" / _name(experiment)).as_uri()


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.tracking.mirror", description=__doc__)
    for option in ("--run-dir", "--uri", "--experiment"):
        parser.add_argument(option, required=True)
    args = parser.parse_args()
    parent = Parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for noisy in ("mlflow", "alembic", "urllib3", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with suppress(OSError):
        os.nice(10)
    run_dir = Path(args.run_dir)
    with locked(run_dir / ".mlflow.lock"):  # the mirror of a killed run may still be busy
        return 0 if follow(Publisher(run_dir, args.uri, args.experiment), parent) else 1


if __name__ == "__main__":
    sys.exit(main())
