"""How long a Ray run takes to its first step: Ray, Ray Train and the process group, with a worker that does nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_common import Result, Settings, choose_device, need


def first_step(config: dict[str, Any]) -> None:
    """On the worker: note the time at which a training step could begin."""
    Path(config["note"]).write_text(repr(time.time()), encoding="ascii")


def ray_start(settings: Settings, repeats: int) -> Result:
    """Seconds from the call of `cluster.ray_train.fit` to the worker's first step, and to the end of the call."""
    need("ray")
    from cluster.ray_train import fit
    from cluster.scaling import Workers

    device = choose_device(settings.device)
    to_first, to_end = [], []
    for run in range(repeats):
        with tempfile.TemporaryDirectory(prefix="mealrec-ray-") as folder:
            note = Path(folder) / "first-step"
            started = time.time()
            fit(
                first_step, {"note": str(note)}, Workers(1, gpus=device.type == "cuda", gpus_here=1),
                name=f"start-{run}", storage=Path(folder),
            )  # fmt: skip
            to_end.append(time.time() - started)
            to_first.append(float(note.read_text(encoding="ascii")) - started)
    return {
        "first_step_s": statistics.median(to_first), "whole_call_s": statistics.median(to_end),
        "first_step_range_s": [min(to_first), max(to_first)], "repeats": repeats,
    }  # fmt: skip
