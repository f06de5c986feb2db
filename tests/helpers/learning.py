"""Train small systems on small synthetic worlds, to test that they learn and that a component changes a metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import recipe
from trainer.data.synthetic.generate import SyntheticOptions, generate
from trainer.training.worker import train_worker

_RUN = ["engine.name=torch", "cluster.launcher=inline", "cluster.threads=1", "tracking.mlflow=false"]


def make_world(folder: Path, **options: Any) -> Path:
    """A synthetic world as a prepared dataset in `folder`: 1,200 users and 400 items unless `options` say otherwise."""
    generate(folder, SyntheticOptions(**{"users": 1200, "items": 400, "topics": 10, "width": 16, "seed": 1, **options}))
    return folder


def train(data: Path, run_dir: Path, model: str, *settings: str) -> dict[str, Any]:
    """Train `model` on `data` with `settings` ("train.epochs=5", "model.hidden=32"); return its test.json.

    Uses the recipe `demo`, this process and one thread. Keys: HR@10 ..., warm, cold, masked (`Evaluation.report`).
    """
    config = recipe.load("demo", model, [*_RUN, *settings], str(data))
    run_dir.mkdir(parents=True)
    train_worker({"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"})
    report: dict[str, Any] = json.loads((run_dir / "test.json").read_text())
    return report
