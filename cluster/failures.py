"""What can go wrong where training runs."""

from __future__ import annotations


class PreflightError(ValueError):
    """The cluster cannot run this as asked; says what is missing and what to do, before anything starts."""


class Stopped(RuntimeError):
    """The process was told to end (SIGTERM, a preemption notice); what it had done is saved, to go on from."""


class WorkerFailed(RuntimeError):
    """Training ended because a worker failed.

    kind: class name of the exception that the worker raised, or "WorkerDied". message: its message.
    detail: the worker's traceback; empty where the message says all. final: the same
    input would fail again, so it is not tried again. when: seconds since the epoch, to tell the first from the rest.
    """

    def __init__(self, kind: str, message: str, detail: str = "", final: bool = False, when: float = 0.0) -> None:
        super().__init__(kind, message, detail, final, when)  # all of them in args: it travels between processes
        self.kind, self.message, self.detail, self.final, self.when = kind, message, detail, final, when

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" + (f"\n\nIn the worker:\n{self.detail}" if self.detail else "")
