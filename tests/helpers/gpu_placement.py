"""Where `fit` places workers on a Ray whose nodes have GPUs by declaration alone: printed, and not begun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cluster import ray_train
from cluster.failures import PreflightError
from cluster.scaling import Workers


def _place(run: Any, config: dict[str, Any], folder: Path, workers: Workers) -> None:
    del run, folder
    print("placed", workers.number, workers.gpus, config["device"])


def main(folder: Path) -> None:
    """As `mealrec train` asks, in a process that sees no GPU: engine.device auto, cpu, cuda; then too many workers."""
    ray_train._fit = _place
    for number, wanted in enumerate((None, False, True)):
        ray_train.fit(print, {}, Workers(2, gpus=wanted), name=str(number), storage=folder)
    try:
        ray_train.fit(print, {}, Workers(3), name="many", storage=folder)
    except PreflightError as error:
        print("refused", error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
