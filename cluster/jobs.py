"""Submit a job to a Ray head, print its log, return its exit status: like `ray job submit`, but without banners.

`python -m cluster.jobs --cpus 4 -- python trainer/run.py --recipe demo ...` starts a head for one job and stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cluster import head
from cluster.failures import PreflightError, Stopped

_POLL_S = 0.5
#: what Ray writes into a job's log before the job's own first line
_BANNER = re.compile(r"^(?:[^\n]*\tINFO job_manager\.py[^\n]*|Running entrypoint for job [^\n]*)\n", re.MULTILINE)
_FAILED = 1
_STOPPED = 75  # as `mealrec train` ends then
_LAST_LINES = 3
_AGENT_S = 120.0


def submit(where: head.Head, command: Sequence[str]) -> int:
    """Run the command as a job on the head `where`, print its output as it comes, and return its exit status.

    An interrupt or an error stops the job, which then has `head.JOB_STOP_S` seconds to save its work.
    Raises PreflightError if the head does not take the job.
    """
    os.environ.update(where.environment)  # the token
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    client = JobSubmissionClient(where.jobs_url)
    job = _submit(client, shlex.join(command))
    try:
        asyncio.run(_follow(client, job))
        return _status(client, job)
    except BaseException:
        with suppress(OSError, RuntimeError):  # the head itself may have failed
            client.stop_job(job)
            until = time.monotonic() + head.JOB_STOP_S
            while not client.get_job_status(job).is_terminal() and time.monotonic() < until:
                time.sleep(_POLL_S)
            print(*client.get_job_logs(job).splitlines()[-_LAST_LINES:], sep="\n", flush=True)
        raise


def _submit(client: Any, entrypoint: str, wait_s: float = _AGENT_S) -> str:
    """Submit the job; try again until the agent that takes jobs is up, which is late on a busy machine.

    We choose the job's id, so that a job is not submitted twice when the answer to the first attempt was lost.
    """
    job, until = f"mealrec-{secrets.token_hex(8)}", time.monotonic() + wait_s
    while (refusal := _refused(client, job, entrypoint)) is not None:
        if time.monotonic() > until:
            raise PreflightError(f"the Ray head took no job for {wait_s:.0f} s: {refusal}; is the machine overloaded?")
        time.sleep(_POLL_S)
    return job


def _refused(client: Any, job: str, entrypoint: str) -> Exception | None:
    """Submit once. Returns None if the head has the job, else the reason why it did not take it."""
    try:
        client.submit_job(entrypoint=entrypoint, submission_id=job)
    except OSError as error:  # the connection broke
        return error
    except RuntimeError as error:
        if "already exists" in str(error):
            return None
        if "No available agent" not in str(error):
            raise
        return error
    return None


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(_BANNER.sub("", text), end="", flush=True)


def _status(client: Any, job: str) -> int:
    """Exit status of the job. Waits, because the log can end a moment before Ray records that the job has ended."""
    while not client.get_job_status(job).is_terminal():
        time.sleep(_POLL_S)
    info = client.get_job_info(job)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # it never ran
        print(f"error: the job did not run: {info.message}", file=sys.stderr)
    return int(info.driver_exit_code or _FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """Start a head, run one job on it and stop the head. Returns the job's exit status, or 2 if there is no head."""
    parser = argparse.ArgumentParser(prog="python -m cluster.jobs", description="run one job on a Ray head of its own")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs of the Ray head (4)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of the Ray head (0)")
    parser.add_argument("command", nargs="+", help="after --: the job, e.g. python trainer/run.py --recipe demo")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with head.running(cpus=args.cpus, gpus=args.gpus) as where:
            return submit(where, args.command)
    except PreflightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return _STOPPED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one must not cut off what the first one began
    raise Stopped("the job was stopped by SIGTERM")


if __name__ == "__main__":
    sys.exit(main())
