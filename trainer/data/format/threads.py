"""Work on several cores of this machine. Most of writing a dataset is numpy, hashing and the disk, which let other
threads run, so no processes are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cluster.cores import usable_cores

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def in_order(work: Callable[[Unit], Result], units: Iterable[Unit], threads: int | None = None) -> Iterator[Result]:
    """`work` of each unit, several at a time, in the order of the units. threads: None for as many as cores.

    At most two results for each thread wait to be taken. The first exception, in the order of the units, is raised.
    """
    threads = threads or usable_cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dataset")
    waiting: deque[Future[Result]] = deque()
    try:
        for unit in units:
            waiting.append(pool.submit(work, unit))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
