"""Where `fit` places workers on a Ray whose nodes have GPUs by declaration alone: printed, and not begun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cluster import ray_train
from cluster.failures import PreflightError


def _place(run: Any, config: dict[str, Any], folder: Path, workers: int, gpus: bool, *rest: Any) -> None:
    del run, folder, rest
    print("placed", workers, gpus, config["device"])


def main(folder: Path) -> None:
    """As `mealrec train` asks, in a process that sees no GPU: engine.device auto, cpu, cuda; then too many workers."""
    ray_train._fit = _place
    options: dict[str, Any] = {"storage": folder, "cpus_per_worker": 1.0, "max_failures": 0, "gpus_here": 0}
    for number, wanted in enumerate((None, False, True)):
        ray_train.fit(print, {}, name=str(number), workers=2, gpus=wanted, **options)
    try:
        ray_train.fit(print, {}, name="many", workers=3, gpus=None, **options)
    except PreflightError as error:
        print("refused", error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
