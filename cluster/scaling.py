"""The workers of a run, and asking the autoscaler of a cluster for their places."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cluster import console
from cluster.failures import PreflightError
from cluster.preflight import check_resources

_POLL_S = 2.0


@dataclass(frozen=True)
class Workers:
    """How many processes work on a run, and what each gets.

    at_least: with so many the run goes on if nodes are lost, and it grows again when there are new ones; 0: it never
    goes on with fewer than all. gpus: whether each gets a GPU; None gives it one where Ray's nodes have any. gpus_here:
    GPUs of this machine, for a Ray that is started on it. max_failures: how often all are started again after a
    failure. scale_up_s: how long to wait for an autoscaler to bring the nodes. GPUs are asked for only where `gpus` is
    True.
    """

    number: int
    at_least: int = 0
    gpus: bool | None = None
    gpus_here: int = 0
    max_failures: int = 0
    scale_up_s: float = 0.0

    @property
    def fewest(self) -> int:
        """With so many the run may go on."""
        return self.at_least or self.number

    @property
    def place(self) -> dict[str, float]:
        """What one of them asks of Ray."""
        return {"CPU": 1, **({"GPU": 1} if self.gpus else {})}


@contextmanager
def scaled_up(workers: Workers) -> Iterator[None]:
    """Ask the connected cluster for a place for each worker, and wait for them up to `workers.scale_up_s` seconds.

    0 asks for nothing. What is missing after that is told by the checks that follow. At the end of the block nothing is
    asked for any more, so that an autoscaler may take idle nodes away.
    """
    if not workers.scale_up_s:
        yield
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[workers.place] * workers.number)
    try:
        wait_for(workers, total=ray.cluster_resources)
        yield
    finally:
        request_resources(bundles=[])


def wait_for(
    workers: Workers, *, total: Callable[[], Mapping[str, float]], sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Whether `total` is enough for all workers within `workers.scale_up_s` seconds."""
    wait_s = workers.scale_up_s
    until = time.monotonic() + wait_s
    told = False
    while True:
        try:
            check_resources(workers.number, gpus=bool(workers.gpus), cpus_per_worker=1, total=total())
            return True
        except PreflightError as missing:
            if time.monotonic() >= until:
                return False
            if not told:
                console.note(f"{missing}; waiting up to {wait_s:g} s for the autoscaler")
                told = True
        sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
