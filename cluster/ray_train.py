"""Run a function on the workers of Ray Train, and show its output and its errors in this process."""

from __future__ import annotations

import errno
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster import console, preemption
from cluster.failures import PreflightError, Stopped, WorkerFailed
from cluster.output import Tee, followed
from cluster.preflight import check_cluster, check_folders, uses_gpus
from cluster.scaling import Workers, scaled_up
from cluster.session import connected

Worker = Callable[[dict[str, Any]], None]
DIED = "WorkerDied"
#: a disk that is full, fails or may not be written will be so again after a new start
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: Ray waits one minute for free resources, this many times; by default it waits for ever, without a message
_START_ATTEMPTS = 10
#: how often a run that lost nodes looks for new ones; then it starts again from its last checkpoint, with more workers
LOOK_FOR_NODES_S = 60.0


def fit(
    worker: Worker, config: dict[str, Any], workers: Workers, *, name: str, storage: Path, folders: Sequence[Path] = ()
) -> None:
    """Run `worker(config)` on every rank, with a torch process group (nccl on GPUs, else gloo).

    Uses the cluster of the submitted job or of RAY_ADDRESS; without one, it starts a Ray that ends with the call.
    `config["device"]` tells the worker whether it has a GPU: "cuda" or "cpu".
    The stdout of rank 0 is printed here; it prints as much as `cluster.console` says in this process.
    `storage / name` holds that output and Ray's own files. Every node must see this folder, and `folders` (the data).
    If a worker fails, all workers are started again (failures before and after the start of training are counted
    separately), on fewer nodes where `workers` says so. A ValueError ends the run at once, because the same input would
    be refused again, and so does a full, failing or read-only disk. So does a stop on request: SIGTERM to this process
    or to a worker is a notice that `worker` can read from `cluster.preemption`.

    `worker` is a module-level function. Paths in `config` must be absolute: a relative path has no meaning on another
    node. Raises WorkerFailed (kind: class name of the exception in the worker) and PreflightError.
    """
    folder = (storage / name).absolute()
    check_folders(folder, folders)
    output = folder / "console.log"
    if output.is_symlink():
        raise PreflightError(f"{output} is a link to {output.readlink()}, and would be written through; remove it")
    request = folder / f".stop-{secrets.token_hex(8)}"
    run = partial(_run, worker, str(output), str(request))
    for failures in range(workers.max_failures + 1):
        resources = connected(cpus=workers.number + 1, gpus=0 if workers.gpus is False else workers.gpus_here)
        with resources, followed(output), preemption.passed_on(request), scaled_up(workers):
            used = uses_gpus(workers.gpus, _resources())
            check_cluster(workers.fewest, gpus=used, cpus_per_worker=1, run_folder=folder, folders=folders)
            try:
                _fit(run, {**config, "device": "cuda" if used else "cpu"}, folder, replace(workers, gpus=used))
                return
            except _LostByController as lost:
                if failures == workers.max_failures:
                    raise
                console.warn(f"{lost.message}; starting the workers again")


def _resources() -> Mapping[str, float]:
    """All that Ray's nodes have, used or not."""
    import ray

    found: Mapping[str, float] = ray.cluster_resources()
    return found


class _LostByController(WorkerFailed):
    """A worker died before training began, while Ray's controller was communicating with all workers.

    Ray (2.60) treats this as an error of the controller: it does not start the workers again, and it reserves their
    resources until the driver disconnects. So the next attempt needs a new connection.
    """


def _fit(run: Worker, config: dict[str, Any], folder: Path, workers: Workers) -> None:
    from ray.train import (
        ControllerError,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        run,
        train_loop_config=config,
        torch_config=_torch_config("nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.number if workers.fewest == workers.number else (workers.fewest, workers.number),
            use_gpu=bool(workers.gpus),
            resources_per_worker=workers.place,
            elastic_resize_monitor_interval_s=LOOK_FOR_NODES_S,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=workers.max_failures, controller_failure_limit=_START_ATTEMPTS),
            callbacks=[_give_up()],
            logging_config=LoggingConfig(log_level=logging.getLevelName(console.library_level(logging.ERROR))),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(error, ControllerError) and cause.kind == DIED:
            raise _LostByController(*cause.args) from None
        raise cause from None


def _torch_config(backend: str) -> Any:
    """Ray's, whose workers take SIGTERM for a notice: set up in their main thread, where handlers must be."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class Torch(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            class Listening(super().backend_cls):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    super().on_start(worker_group, backend_config)
                    worker_group.execute(preemption.listen)

            return Listening

    return Torch(backend=backend)


def _give_up() -> Any:
    """A callback in Ray's controller that ends the run on a final error, because a retry would fail again."""
    from ray.train import UserCallback

    class GiveUp(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
            for error in worker_exceptions.values():
                if isinstance(error, WorkerFailed) and error.final:
                    raise error

    return GiveUp()


def _run(worker: Worker, output: str, request: str, config: dict[str, Any]) -> None:
    """Runs on each worker: calls `worker`, copies what rank 0 prints to `output`, raises any error as WorkerFailed."""
    from ray.train import get_context

    try:
        if get_context().get_world_rank() == 0:
            preemption.watch(Path(request))
            with Path(output).open("a", encoding="utf-8", buffering=1) as file:
                sys.stdout = Tee(sys.stdout, file)
                with console.of_a_worker():
                    worker(config)
        else:
            worker(config)
    except Exception as error:
        # The exception itself may not be picklable, or its class may be unknown to Ray's controller.
        text = traceback.format_exc()
        final = isinstance(error, ValueError | Stopped) or getattr(error, "errno", None) in _DISK
        raise WorkerFailed(type(error).__name__, str(error), text, final, time.time()) from None
    finally:
        if isinstance(sys.stdout, Tee):
            sys.stdout = sys.stdout.first


def _cause(error: Any) -> WorkerFailed:
    """The failure that explains the others: a final error, else a worker that died, else the earliest failure.

    When one rank ends, the collectives of the others fail as well, with messages that do not name the cause.
    """
    from ray.exceptions import RayActorError

    failures: list[BaseException] = list((getattr(error, "worker_failures", None) or {}).values())
    inner = error
    while (inner := getattr(inner, "controller_failure", None)) is not None:
        failures.append(inner)
    raised = sorted((each for each in failures if isinstance(each, WorkerFailed)), key=lambda each: each.when)
    final = [each for each in raised if each.final]
    dead = [
        WorkerFailed(DIED, "a worker ended without an exception (killed, or out of memory?)", str(each))
        for each in failures
        if isinstance(getattr(each, "health_check_failure", each), RayActorError)
    ]
    return next(iter([*final, *dead, *raised]), WorkerFailed(type(error).__name__, str(error)))
