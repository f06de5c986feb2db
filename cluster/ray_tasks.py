"""A function for each of many units, on the CPUs of a Ray cluster; the answers in the order of the units."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.cores import usable_cores
from cluster.failures import PreflightError, WorkerFailed
from cluster.preflight import check_cluster, check_folders
from cluster.session import connected

#: calls `work(unit)` for each unit on the cluster
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
#: how often a unit is done again whose process, node or answer was lost
_RETRIES = 2
#: units that Ray has for each CPU, so that none waits for us
_AHEAD = 2


@contextmanager
def on_ray(out: Path, folders: Sequence[Path]) -> Iterator[Each]:
    """Connect to the cluster of the submitted job or of RAY_ADDRESS, or start a Ray on this machine that ends with the
    block. Every node must see `out`, where the work writes, and `folders`.

    The function that is given runs `work(unit)` in a process with one CPU. A unit whose process dies is done again, so
    `work` must be able to begin anew; `work` and the units are pickled. It raises WorkerFailed for an exception of
    `work` (kind: its class name), and PreflightError for a unit whose processes die. Raises PreflightError for a
    cluster that cannot do the work.
    """
    out, folders = out.absolute(), [folder.absolute() for folder in folders]
    check_folders(out, folders)
    with connected(cpus=usable_cores(), gpus=0):
        import ray

        check_cluster(1, gpus=False, cpus_per_worker=1, run_folder=out, folders=folders)
        ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        # our own retries: Ray would start a task that runs out of memory again and again
        task = ray.remote(num_cpus=1, max_retries=0)(_answer)

        def each(work: Callable[[Any], Any], units: Sequence[Any]) -> Iterator[Any]:
            left, sent = deque(units), deque[tuple[Any, Any]]()
            shared = ray.put(work)
            while left or sent:
                while left and len(sent) < ahead:
                    unit = left.popleft()
                    sent.append((unit, task.remote(shared, unit)))
                yield _result(task, shared, *sent.popleft())

        yield each


def _answer(work: Callable[[Any], Any], unit: Any) -> tuple[Any, tuple[str, str, str] | None]:
    """The result, or what is known of the exception."""
    try:
        return work(unit), None
    except Exception as error:
        return None, (type(error).__name__, str(error), traceback.format_exc())


def _result(task: Any, work: Any, unit: Any, answer: Any) -> Any:
    import ray

    for lost in range(_RETRIES + 1):
        try:
            result, failed = ray.get(answer)
            break
        except ray.exceptions.RayError as error:  # a process, a node or the answer itself is gone
            if lost == _RETRIES:
                raise PreflightError(
                    f"the processes that worked on a unit ({unit}) died {lost + 1} times ({str(error)[:500]}); "
                    "where memory ran out, give more and smaller units, or nodes with more memory"
                ) from error
            answer = task.remote(work, unit)
    if failed:
        raise WorkerFailed(*failed)
    return result
