"""Runs of `training_runs` in their own processes: complete, or killed by SIGKILL at the n-th event of a kind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from retrieval import export, folders
from retrieval.files import FileSystem
from tests.helpers.tiny_runs import ended_ranks, fork_server, joined
from trainer.cli import main
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.evaluation.rankers import ExactRanker
from trainer.tracking import MetricsLog
from trainer.training import worker as session
from trainer.training.engine import TorchEngine

#: kind of event -> its methods and functions (class or module, name); the process is killed just before the call
POINTS: dict[str, list[tuple[Any, str]]] = {
    "step": [(TorchEngine, "step")],
    "save": [(FileSystem, name) for name in ("mkdir", "open", "write", "fsync", "rename", "remove_tree")],
    "evaluation": [(ExactRanker, "rank")],
    "log": [(MetricsLog, "append")],
    "load": [(Dataset, "verify")],
    "export": [(export, "_save"), (folders, "_sync_tree"), (folders, "_put_in_place")],
}


def run_process(config: RunConfig, run_dir: Path, kill: tuple[str, int] | None = None, timeout: float = 120) -> int:
    """Train in a new process and return its exit code. kill: (kind, n) kills it just before the n-th event of the kind.

    If it is not killed, it writes the number of events of each kind to events.json.
    """
    settings = {"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"}
    process = fork_server().Process(target=_train, args=(settings, kill))
    process.start()
    process.join(timeout=timeout)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def run_world(config: RunConfig, run_dir: Path, world: int, kill: tuple[int, str, int] | None = None) -> None:
    """Train on `world` processes, which end with the call, without Ray.

    kill: (rank, kind, n) kills this rank just before its n-th event of the kind; the others then end with an error.
    """
    settings = {"config": config.model_dump(mode="json"), "run_dir": str(run_dir), "command": "test"}
    settings["store"] = f"{run_dir}.{secrets.token_hex(4)}.store"
    codes = ended_ranks(_train_rank, world, settings, kill)
    if kill is None:
        assert codes == [0] * world, codes
    else:
        assert codes[kill[0]] == -signal.SIGKILL, codes
        assert all(codes), codes


def run_command(
    arguments: Sequence[str],
    output: Path,
    stop: tuple[str, int] | None = None,
    number: signal.Signals = signal.SIGTERM,
) -> tuple[int, str]:
    """`mealrec` in a new process, which gets the signal `number` right before event number stop[1] of kind stop[0].

    Returns its exit code, and what it printed, which goes to the file `output`.
    """
    process = fork_server().Process(target=_command, args=(arguments, output, stop, number))
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "the command hangs"
    return process.exitcode, output.read_text()


def _command(arguments: Sequence[str], output: Path, stop: tuple[str, int] | None, number: signal.Signals) -> None:
    _count(stop, number)
    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(arguments)
    sys.exit(code)


def _count(kill: tuple[str, int] | None, number: signal.Signals) -> Counter[str]:
    events: Counter[str] = Counter()
    for kind, places in POINTS.items():
        for cls, name in places:
            setattr(cls, name, _counted(getattr(cls, name), kind, events, kill, number))
    return events


def _train(settings: dict[str, Any], kill: tuple[str, int] | None) -> None:
    events = _count(kill, signal.SIGKILL)
    session.train_worker(settings)
    (Path(settings["run_dir"]) / "events.json").write_text(json.dumps(events))


def _train_rank(rank: int, world: int, settings: dict[str, Any], kill: tuple[int, str, int] | None) -> None:
    if kill is not None and kill[0] == rank:
        _count(kill[1:], signal.SIGKILL)
    with joined(rank, world, Path(settings.pop("store"))):
        session.train_worker(settings)


def _counted(
    method: Callable[..., Any],
    kind: str,
    events: Counter[str],
    kill: tuple[str, int] | None,
    number: signal.Signals,
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        events[kind] += 1
        if kill == (kind, events[kind]):
            os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    return call
