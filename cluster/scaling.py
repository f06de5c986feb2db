"""Ask the autoscaler of a cluster for the resources of a run, and wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cluster import console
from cluster.failures import PreflightError
from cluster.preflight import check_resources

_POLL_S = 2.0


@contextmanager
def scaled_up(workers: int, *, gpus: bool, cpus_per_worker: float, wait_s: float) -> Iterator[None]:
    """Ask the connected cluster for `workers` places, each with a GPU if `gpus`, and wait up to `wait_s` seconds.

    0 asks for nothing. What is missing after that is told by the checks that follow. At the end of the block nothing is
    asked for any more, so that an autoscaler may take idle nodes away.
    """
    if not wait_s:
        yield
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    place = {"CPU": cpus_per_worker, **({"GPU": 1} if gpus else {})}
    request_resources(bundles=[place] * workers)
    try:
        wait_for(workers, gpus=gpus, cpus_per_worker=cpus_per_worker, wait_s=wait_s, total=ray.cluster_resources)
        yield
    finally:
        request_resources(bundles=[])


def wait_for(
    workers: int,
    *,
    gpus: bool,
    cpus_per_worker: float,
    wait_s: float,
    total: Callable[[], Mapping[str, float]],
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether `total` is enough for the workers within `wait_s` seconds."""
    until = time.monotonic() + wait_s
    told = False
    while True:
        try:
            check_resources(workers, gpus=gpus, cpus_per_worker=cpus_per_worker, total=total())
            return True
        except PreflightError as missing:
            if time.monotonic() >= until:
                return False
            if not told:
                console.note(f"{missing}; waiting up to {wait_s:g} s for the autoscaler")
                told = True
        sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
