"""A Ray Data pipeline of two stages: tasks load on CPUs, actors encode, and the driver gets a stream of results."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import console
from cluster.failures import PreflightError, WorkerFailed
from cluster.preflight import check_cluster, check_folders
from cluster.session import connected, on_a_cluster

#: turns one unit of work (any picklable value) into bytes
Load = Callable[[Any], bytes]
Encode = Callable[[bytes], bytes]
MakeEncoder = Callable[[str, int], Encode]

#: how often a unit whose process died is tried again, in each stage
_RETRIES = 1
#: most units that Ray has sent to one encoder and that are not encoded yet
_IN_FLIGHT_PER_ENCODER = 2


#: part of a warning that Ray (2.60) prints for every actor pool of Ray Data, about arguments that Ray itself stored
_NOTICE = b"has constructor arguments in the object store"


@dataclass(frozen=True)
class Stages:
    """Sizes of the pipeline. loaders: number of tasks that load at the same time, with one CPU each. encoders: number
    of actors, each with `cpus_per_encoder` CPUs, and one GPU if `gpus`."""

    loaders: int
    encoders: int
    cpus_per_encoder: int
    gpus: bool

    def __str__(self) -> str:
        return f"{self.loaders} to load, {self.encoders} to encode on {'GPUs' if self.gpus else 'CPUs'}"

    @property
    def in_hand(self) -> int:
        """The most units that have begun to load but have not reached the driver: a kill loses so many."""
        return 2 * self.loaders + (2 * _IN_FLIGHT_PER_ENCODER + 1) * self.encoders


def plan_stages(cpus: int, gpus: int, loaders: int | None, encoders: int | None) -> Stages:
    """Sizes for a machine or cluster with `cpus` and `gpus`. loaders, encoders: the user's numbers, None for defaults.

    Defaults: one encoder per GPU, and loaders on all other CPUs. Without a GPU, half of the CPUs get one encoder each,
    or all those that the `loaders` asked for leave.
    """
    encoders = encoders or gpus or max(1, cpus - loaders if loaders else cpus // 2)
    return Stages(loaders or max(1, cpus - encoders), encoders, 1, gpus > 0)


def stream(
    units: Sequence[Any],
    load: Load,
    make_encoder: MakeEncoder,
    *,
    cpus: int,
    gpus: int,
    use_gpus: bool | None,
    loaders: int | None,
    encoders: int | None,
    unit_bytes: int,
    out: Path,
    folders: Sequence[Path] = (),
    apart: bool = False,
) -> Iterator[bytes]:
    """Yield `encode(load(unit))` for the units, in the order in which the results are ready.

    Uses the cluster of the submitted job or of RAY_ADDRESS; without one, it starts a Ray with `cpus` and `gpus` that
    ends with the generator. Each actor calls `make_encoder(device, threads)` once. use_gpus: None uses GPUs if there
    are any. loaders, encoders: see `plan_stages`. unit_bytes: approximate size of a loaded unit; the pipeline holds
    only a few units per worker, even if the reader is slow. A unit whose process dies repeatedly (a decoder crashes,
    memory runs out) is left out, and the caller has to notice that its result is missing; units that Ray had sent to
    that process may be missing, too, unless `apart`, which sends one at a time and is slower. Every node must see
    `out` and `folders`. Raises PreflightError, and WorkerFailed for an exception in either stage (kind: its class
    name).
    """
    check_folders(out, folders)
    shared = on_a_cluster(os.environ)
    stages = plan_stages(cpus, 0 if shared else usable_gpus(gpus, use_gpus), loaders, encoders)
    with connected(cpus=stages.loaders + stages.encoders * stages.cpus_per_encoder, gpus=gpus if stages.gpus else 0):
        if shared:
            stages = _stages_of_cluster(use_gpus, loaders, encoders)
            check_cluster(
                stages.encoders,
                gpus=stages.gpus,
                cpus_per_worker=stages.cpus_per_encoder,
                run_folder=out,
                folders=folders,
            )
        console.note(f"Ray: {stages}; the first results take about half a minute")
        yield from _results(_pipeline(units, load, make_encoder, stages, unit_bytes, apart))


def _stages_of_cluster(use_gpus: bool | None, loaders: int | None, encoders: int | None) -> Stages:
    """The stages on all CPUs and GPUs of the cluster. Raises PreflightError: nothing would be left for loading."""
    import ray

    total = ray.cluster_resources()
    cpus = total.get("CPU", 0)
    stages = plan_stages(int(cpus) or 1, usable_gpus(int(total.get("GPU", 0)), use_gpus), loaders, encoders)
    if cpus <= stages.encoders * stages.cpus_per_encoder:
        raise PreflightError(
            f"{stages.encoders} encoders would take all {cpus:g} CPUs of the cluster, and loading needs one: give "
            "fewer --encoders, or add a CPU"
        )
    return stages


def _results(pipeline: Any) -> Iterator[bytes]:
    """What the encoders returned. Raises WorkerFailed for an exception in either stage."""
    rows: Any = iter(pipeline.iter_rows())
    try:
        with _stderr_without(_NOTICE):
            row = next(rows, None)
        while row is not None:
            yield _data_or_raise(row)
            row = next(rows, None)
    except WorkerFailed:
        raise
    except Exception as error:
        _explain(error)
        raise
    finally:
        rows.close()  # ends the thread that feeds the pipeline, which must not outlive the connection


def usable_gpus(there: int, wanted: bool | None) -> int:
    """Number of GPUs to use out of `there`. Raises PreflightError if GPUs are `wanted` and there is none."""
    if wanted and not there:
        raise PreflightError("there is no GPU here that torch can use; leave --device cuda out, or see mealrec doctor")
    return 0 if wanted is False else there


def _pipeline(
    units: Sequence[Any], load: Load, make_encoder: MakeEncoder, stages: Stages, unit_bytes: int, apart: bool
) -> Any:
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, TaskPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(console.library_level(logging.CRITICAL))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our stages return exceptions as data, so an errored block means that a process died: the others go on.
    context.max_errored_blocks = -1
    context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=float(max(2 * stages.in_hand * unit_bytes, 256 << 20))
    )
    rows = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
    with warnings.catch_warnings():
        # By default Ray retries a unit that kills its process for ever. Ray 2.64 will rename the options that limit
        # the retries (pyproject.toml allows no later version); 2.60 has no other names for them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        loaded = rows.map(
            _Loading(load),
            compute=TaskPoolStrategy(size=min(stages.loaders, len(units))),  # Ray warns if tasks outnumber units
            num_cpus=1,
            max_retries=_RETRIES,
        )
        return loaded.map(
            _Encoding,
            fn_constructor_args=(make_encoder, "cuda" if stages.gpus else "cpu", stages.cpus_per_encoder),
            compute=ActorPoolStrategy(
                size=min(stages.encoders, len(units)),
                max_tasks_in_flight_per_actor=1 if apart else _IN_FLIGHT_PER_ENCODER,
            ),
            num_cpus=stages.cpus_per_encoder,
            num_gpus=1 if stages.gpus else 0,
            max_task_retries=_RETRIES,
        )


class _Loading:
    """Calls `load`; returns an exception as a row."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _row(lambda: self._load(row["unit"]))


class _Encoding:
    """Calls `encode` on a loaded unit; returns a row with an exception unchanged."""

    def __init__(self, make_encoder: MakeEncoder, device: str, threads: int) -> None:
        def make() -> bytes:
            self._encode = make_encoder(device, threads)
            return b""

        made = _row(make)
        # kept, not raised: an exception in the constructor would make Ray start the actor again and again
        self._failed = made if made["error"] else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"] or self._failed:
            return self._failed or row
        return _row(lambda: self._encode(row["data"]))


def _row(work: Callable[[], bytes]) -> dict[str, Any]:
    try:
        return {"data": work(), "error": ""}
    except Exception as error:
        said = {"kind": type(error).__name__, "message": str(error), "detail": traceback.format_exc()}
        return {"data": b"", "error": json.dumps(said)}


def _data_or_raise(row: dict[str, Any]) -> bytes:
    if row["error"]:
        raise WorkerFailed(**json.loads(row["error"]))
    data: bytes = row["data"]
    return data


def _explain(error: Exception) -> None:
    """Raise PreflightError with advice if this is an error of Ray that the user can avoid; else return."""
    import ray.exceptions

    if isinstance(error, ray.exceptions.OutOfMemoryError | ray.exceptions.ObjectStoreFullError):
        raise PreflightError(f"the nodes ran out of memory ({error}); use fewer loaders or a smaller batch") from None


@contextmanager
def _stderr_without(notice: bytes) -> Iterator[None]:
    """While the block runs, drop lines with `notice` from standard error. C++ writes them, not Python's logging."""
    sys.stderr.flush()
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    thread = threading.Thread(target=_copy_lines, args=(read, saved, notice), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)  # closes the last writing end of the pipe, so that the thread ends
        thread.join()
        os.close(saved)


def _copy_lines(source: int, target: int, notice: bytes) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if notice not in line:
                os.write(target, line)
