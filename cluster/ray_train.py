"""Run a function on the workers of Ray Train, and show its output and its errors in this process."""

from __future__ import annotations

import errno
import logging
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from cluster import console, preemption
from cluster.failures import PreflightError, Stopped, WorkerFailed
from cluster.preflight import check_cluster, check_folders, uses_gpus
from cluster.scaling import scaled_up
from cluster.session import connected

Worker = Callable[[dict[str, Any]], None]
DIED = "WorkerDied"
_POLL_S = 0.2
#: a disk that is full, fails or may not be written will be so again after a new start
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: Ray waits one minute for free resources, this many times; by default it waits for ever, without a message
_START_ATTEMPTS = 10


def fit(
    worker: Worker,
    config: dict[str, Any],
    *,
    name: str,
    workers: int,
    gpus: bool | None,
    gpus_here: int,
    cpus_per_worker: float,
    storage: Path,
    max_failures: int,
    folders: Sequence[Path] = (),
    scale_up_s: float = 0.0,
) -> None:
    """Run `worker(config)` on every rank, with a torch process group (nccl on GPUs, else gloo).

    Uses the cluster of the submitted job or of RAY_ADDRESS; without one, it starts a Ray that ends with the call.
    gpus: whether each worker gets a GPU; None gives it one where Ray's nodes have any. `config["device"]` tells the
    worker: "cuda" or "cpu". gpus_here: GPUs of this machine, for the Ray that is started on it.
    The stdout of rank 0 is printed here; it prints as much as `cluster.console` says in this process.
    scale_up_s: how long to wait for an autoscaler to bring the nodes. GPUs are asked for only where `gpus` is True.
    `storage / name` holds that output and Ray's own files. Every node must see this folder, and `folders` (the data).
    If a worker fails, all workers are started again, up to `max_failures` times (failures before and after the start of
    training are counted separately). A ValueError ends the run at once, because the same input would be refused again,
    and so does a full, failing or read-only disk. So does a stop on request: SIGTERM to this process or to a worker is
    a notice that `worker` can read from `cluster.preemption`.

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
    for failures in range(max_failures + 1):
        resources = connected(cpus=workers * cpus_per_worker + 1, gpus=0 if gpus is False else gpus_here)
        asked = scaled_up(workers, gpus=bool(gpus), cpus_per_worker=cpus_per_worker, wait_s=scale_up_s)
        with resources, _followed(output), preemption.passed_on(request), asked:
            used = uses_gpus(gpus, _resources())
            check_cluster(workers, gpus=used, cpus_per_worker=cpus_per_worker, run_folder=folder, folders=folders)
            placed = {**config, "device": "cuda" if used else "cpu"}
            try:
                _fit(run, placed, folder, workers, used, cpus_per_worker, max_failures)
                return
            except _LostByController as lost:
                if failures == max_failures:
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


def _fit(
    run: Worker,
    config: dict[str, Any],
    folder: Path,
    workers: int,
    gpus: bool,
    cpus_per_worker: float,
    max_failures: int,
) -> None:
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
        torch_config=_torch_config("nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if gpus else {})},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=_START_ATTEMPTS),
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
                sys.stdout = _Tee(sys.stdout, file)
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
        if isinstance(sys.stdout, _Tee):
            sys.stdout = sys.stdout.first


class _Tee:
    """Writes text to both streams; all other attributes are those of the first."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self.first, self._second = first, second

    def write(self, text: str) -> int:
        self._second.write(console.harmless(text))  # a file that a user looks at in a terminal
        return self.first.write(text)

    def flush(self) -> None:
        self._second.flush()
        self.first.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)


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


@contextmanager
def _followed(path: Path) -> Iterator[None]:
    """Copy to stdout whatever is appended to the file, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, path.stat().st_size, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(path: Path, start: int, done: threading.Event) -> None:
    # with --quiet a worker prints nothing but warnings, which are no results
    output = sys.stdout if console.shows(console.Verbosity.BRIEF) else sys.stderr
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        while True:
            last = done.wait(_POLL_S)
            if text := file.read():
                print(text, end="", file=output, flush=True)
            if last:
                return
