"""Errors of a cluster: it cannot run what was asked for, or a worker failed."""

from __future__ import annotations


class PreflightError(ValueError):
    """The cluster cannot run what was asked for. The message says what is missing and what to do."""


class Stopped(RuntimeError):
    """The process was told to end (SIGTERM, a preemption notice); what it had done is saved, to go on from."""


class WorkerFailed(RuntimeError):
    """Training ended because a worker failed.

    kind: class name of the exception in the worker, or "WorkerDied". message: the text of that exception.
    detail: the traceback in the worker; empty if the message is enough. final: True if the same input would fail
    again, so that there is no retry. when: time of the failure, in seconds since the epoch, to find the first failure.
    """

    def __init__(self, kind: str, message: str, detail: str = "", final: bool = False, when: float = 0.0) -> None:
        super().__init__(kind, message, detail, final, when)  # pickling to another process keeps only args
        self.kind, self.message, self.detail, self.final, self.when = kind, message, detail, final, when

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" + (f"\n\nIn the worker:\n{self.detail}" if self.detail else "")
