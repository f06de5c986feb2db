"""Folders of finished runs, written by hand: the ranks of eight users, and a configuration that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.metrics.summary import mean_metrics
from trainer.config import recipe
from trainer.config.identity import versions
from trainer.config.schema import RunConfig
from trainer.evaluation.evaluate import Evaluation

RANKS = [1, 2, 11, 20, 21, 0, 3, 10]
MASKED = [1, 1, 5, 20, 21, 0, 2, 9]
COLD = [False, False, False, True, False, True, False, False]


def write_run(
    folder: Path,
    system: str = "sasrec",
    *settings: str,
    seed: int = 1,
    manifest: str = "m",
    data: str = "d",
    report: dict[str, Any] | None = None,
    **arrays: Any,
) -> Path:
    """Write a finished run. manifest, data: the checksums it notes. arrays: instead of the columns of its ranks.
    report: what test.json holds besides.
    """
    config = recipe.load("demo", system, ["data.path=data/demo", f"seed={seed}", *settings], None)
    columns = {"user": np.arange(8), "target": np.arange(8) + 100, "rank": RANKS, "rank_masked": MASKED, "cold": COLD}
    columns |= arrays
    result = Evaluation(**{name: np.asarray(value) for name, value in columns.items()}, seconds=1.0)
    folder.mkdir(parents=True)
    result.save(folder / "ranks-test.npz")
    whole = {**result.report(), "epoch": 3, "identity": identity(config, manifest, data), **(report or {})}
    (folder / "test.json").write_text(json.dumps(whole))
    (folder / "config.yaml").write_text(recipe.dump(config, f"mealrec train --name {folder.name}"))
    return folder


def identity(config: RunConfig, manifest: str, data: str = "d") -> dict[str, Any]:
    """As `trainer.config.identity` has it, for a dataset that is not there."""
    return {
        "config": config.fingerprint(), "evaluation": config.eval.fingerprint(60, 80),
        "data": data, "manifest": manifest, "versions": versions(),
    }  # fmt: skip


def hits(share: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ranks of eight users, of whom the first `share` have their target at rank 1 and the others at 50."""
    return np.where(np.arange(8) < share, 1, 50)


def figures(ranks: Any) -> dict[str, float]:
    """The default metrics of these ranks."""
    return mean_metrics(np.asarray(ranks))
