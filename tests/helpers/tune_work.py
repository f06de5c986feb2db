"""What the trials of tests/cluster/test_ray_tune.py do, in processes of Ray."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cluster.ray_tune import Report


def work(content: dict[str, Any], report: Report) -> None:
    """Report epochs of a value, or die on the way. It writes how far it came, the process, and how it was placed."""
    folder = Path(content["folder"])
    with (folder / "processes").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if content.get("dies"):
        with (folder / "deaths").open("a") as file:
            file.write("x")
        os._exit(1)
    if content.get("waits_for"):  # the other trial must run at the same time
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        (folder / f"{content['name']}.gpus").write_text(f"{os.getpid()} {gpus}")
        end = time.monotonic() + 60
        while not (folder / f"{content['waits_for']}.gpus").exists():
            assert time.monotonic() < end, "the other trial does not run at the same time"
            time.sleep(0.05)
    for epoch in range(1, 7):
        (folder / content["name"]).write_text(f"{epoch} {content['device']}")
        if not report(epoch, content["value"]):
            return
