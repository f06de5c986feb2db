"""The job that test_cluster.py runs on a real Ray head: `python -m tests.helpers.cluster_worker FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cluster import console
from cluster.failures import WorkerFailed
from cluster.ray_train import fit
from cluster.scaling import Workers


def train(config: dict[str, Any]) -> None:
    """Sum the ranks; rank 1 is killed while it trains, once. At last one rank raises a user's mistake."""
    import torch
    import torch.distributed as dist

    folder, rank = Path(config["folder"]), dist.get_rank()
    (folder / f"attempt-{rank}-{os.getpid()}").touch()
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    if rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        time.sleep(2)  # wait until Ray's controller has seen all of them train
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    print(f"rank {rank}: sum {total.item():g} by {dist.get_backend()}, {os.environ['OMP_NUM_THREADS']} threads")
    dist.barrier()
    refuse(config)


class KilledOnArrival:
    """`train`, but the first worker that unpickles it is killed while Ray's controller waits for the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        is_worker = Path("/proc/self/cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
        if is_worker and not (self.folder / "killed early").exists():
            (self.folder / "killed early").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, config: dict[str, Any]) -> None:
        train(config)


def refuse(config: dict[str, Any]) -> None:
    """One rank raises a user's mistake; the other one prints, waits for it and then fails for another reason."""
    import torch.distributed as dist

    from models.errors import UserError

    (Path(config["folder"]) / f"refused-{dist.get_rank()}-{os.getpid()}").touch()
    if dist.get_rank() == 1:
        raise UserError("the table has no column 'x'")
    console.say("said by rank 0")
    console.warn("of rank 0")
    dist.barrier()


def main(folder: Path) -> None:
    """Run it, and write how it ended to outcome.json."""
    try:
        with console.printing(console.Verbosity.QUIET):
            fit(
                KilledOnArrival(folder), {"folder": str(folder)}, Workers(2, gpus=False, max_failures=2),
                name="train", storage=folder / "runs", folders=[folder],
            )  # fmt: skip
    except WorkerFailed as failure:
        outcome = {"kind": failure.kind, "message": failure.message, "detail": failure.detail}
        (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
