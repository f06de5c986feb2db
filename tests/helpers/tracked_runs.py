"""Folders of runs as training writes them, and what MLflow should then have of them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from trainer.commands import track
from trainer.tracking import MetricsLog

ALWAYS = {"config.yaml", "metrics.jsonl", "learning_curves.png"}


def write_run(runs_dir: Path, name: str = "demo") -> tuple[Path, MetricsLog]:
    run_dir, data = runs_dir / name, runs_dir.parent / "beauty"
    run_dir.mkdir(parents=True)
    data.mkdir(exist_ok=True)
    manifest = {"users": 5, "items": 7, "interactions": 30, "train_rows": 15}
    (data / "manifest.json").write_text(json.dumps(manifest))
    config = {
        "data": {"path": str(data)},
        "model": {
            "name": "sasrec",
            "widths": [1, 2],
            "note": "x" * 9000,
            "many": {f"k{n}": n for n in range(150)},  # more than a request takes
        },
        "seed": 7,
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.append("start", 0, 0, {})
    return run_dir, log


def append_epochs(log: MetricsLog, *epochs: int) -> None:
    for epoch in epochs:
        log.append("epoch", epoch, 10 * epoch, {"loss": 1 / epoch, "valid": {"HR@10": epoch / 100}})


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def recorded(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "mlflow.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"posted": {}, "run_id": None}


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def assert_epochs(client: Any, run_id: str, count: int) -> None:
    epochs = range(1, count + 1)
    assert history(client, run_id, "loss") == [(10 * epoch, 1 / epoch) for epoch in epochs]
    assert history(client, run_id, "valid/HR_at_10") == [(10 * epoch, epoch / 100) for epoch in epochs]
    assert history(client, run_id, "epoch") == [(10 * epoch, float(epoch)) for epoch in epochs]


def outages(run_dir: Path) -> int:
    return (run_dir / "mlflow.log").read_text().count("MLflow fails")


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def published(run_dir: Path, uri: str, experiment: str = "mealrec", started: float | None = None) -> None:
    """Bring MLflow up to date with a run that has ended, in this process: `tracked` takes seconds to start its own."""
    from trainer.tracking.publisher import Publisher  # imports MLflow

    publisher = Publisher(run_dir, uri, experiment, started)
    publisher.sync()
    publisher.finish("FINISHED")


def tracked(run_dir: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    track.add_arguments(parser)
    return track.run(parser.parse_args(["--run", run_dir.name, "--runs-dir", str(run_dir.parent), *options]))
