"""Submit a job to a Ray head, follow its log, give its exit status: `ray job submit` without its banners.

`python -m cluster.jobs --cpus 4 -- python trainer/run.py --recipe demo ...` starts a head for one job and stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cluster import head
from cluster.errors import PreflightError

_POLL_S = 0.5
_FAILED = 1


def submit(where: head.Head, command: Sequence[str]) -> int:
    """Run the command as a job where the head was started, print its output as it comes, and return its exit status.

    The job is stopped if this is interrupted.
    """
    os.environ.update(where.environment)  # the token
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    client = JobSubmissionClient(where.jobs_url)
    job = client.submit_job(entrypoint=shlex.join(command))
    try:
        asyncio.run(_follow(client, job))
        return _status(client, job)
    except BaseException:
        with suppress(OSError, RuntimeError):  # the head may be what failed
            client.stop_job(job)
        raise


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _status(client: Any, job: str) -> int:
    """Exit status of the job; the log can end a moment before the job is recorded as ended."""
    while not client.get_job_status(job).is_terminal():
        time.sleep(_POLL_S)
    info = client.get_job_info(job)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # it never ran
        print(f"error: the job did not run: {info.message}", file=sys.stderr)
    return int(info.driver_exit_code or _FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """A head for one job; returns the job's exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.jobs", description="run one job on a Ray head of its own")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs that Ray counts on (4)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that Ray counts on (0)")
    parser.add_argument("command", nargs="+", help="after --: the job, e.g. python trainer/run.py --recipe demo")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with head.running(cpus=args.cpus, gpus=args.gpus) as where:
            return submit(where, args.command)
    except PreflightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
