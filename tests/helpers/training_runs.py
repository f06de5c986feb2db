"""Runs of a few seconds in this process, and the comparison of how two runs ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.training.checkpoint import CheckpointStore
from trainer.training.worker import train_worker

STEPS = 32  # steps of the undisturbed run: 4 epochs of 8
SETTINGS = (
    "train.epochs=4", "train.batch_size=30", "train.checkpoint_every=3", "train.patience=9",
    "train.keep_optimizer=true", "train.schedule={name: cosine, epochs: 9, warmup: 5}",
)  # fmt: skip


def write_config(config: RunConfig, run_dir: Path) -> RunConfig:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(recipe.dump(config, "mealrec train"))
    return config


def train(config: RunConfig, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    train_worker({"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times and memory."""
    timed = {"rows_per_second", "train_seconds", "valid_seconds", "checkpoint_seconds", "process", "peak_memory_mib"}
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["metrics"] = {key: value for key, value in row["metrics"].items() if key not in timed}
        del row["time"]
    return rows


def assert_same_end(a: Path, b: Path) -> None:
    """Compare weights, moments and state of the last checkpoint, metrics and ranks, bit for bit."""
    one, two = CheckpointStore(a / "checkpoints").latest(), CheckpointStore(b / "checkpoints").latest()
    assert one is not None
    assert two is not None
    assert (one.step, _timeless(one.state)) == (two.step, _timeless(two.state))
    assert one.tensors.keys() == two.tensors.keys()
    for group in one.tensors:
        assert one.tensors[group].keys() == two.tensors[group].keys()
        assert all(torch.equal(value, two.tensors[group][name]) for name, value in one.tensors[group].items())
    assert lines(a) == lines(b)
    assert [row["epoch"] for row in lines(b) if row["event"] == "epoch"] == list(
        range(1, one.state["position"]["epoch"])
    )
    for name in ("test", "valid"):
        first, second = (np.load(run / f"ranks-{name}.npz", allow_pickle=False) for run in (a, b))
        assert all(np.array_equal(first[key], second[key]) for key in ("user", "target", "rank", "rank_masked", "cold"))
        reports = [_timeless(json.loads((run / f"{name}.json").read_text())) for run in (a, b)]
        assert reports[0] == reports[1]


def _timeless(noted: dict[str, Any]) -> dict[str, Any]:
    """Without the time that it took, and without versions: a commit while the tests run changes the revision."""
    return {
        key: _timeless(value) if isinstance(value, dict) else value
        for key, value in noted.items()
        if key not in ("seconds", "versions")
    }
