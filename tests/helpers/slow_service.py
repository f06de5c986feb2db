"""A service that takes a second to answer, and a program that serves it and tells what a burst of requests gets."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

ANSWER_S = 1.0


class SlowService:
    """Answers 200, late."""

    def __init__(self) -> None:
        self.asgi = Starlette(routes=[Route("/", _late)])


async def _late(request: Request) -> PlainTextResponse:
    del request
    await asyncio.sleep(ANSWER_S)
    return PlainTextResponse("late")


def status(url: str) -> tuple[int, float]:
    """The status of an answer, and the seconds it took."""
    started = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, time.monotonic() - started
    except urllib.error.HTTPError as error:
        return error.code, time.monotonic() - started


def main(port: int) -> None:
    """Serve, send 12 requests at once, and print how many got which status, and how long a refusal took."""
    from cluster.serving import Serving, served
    from tests.helpers.slow_service import SlowService as Imported  # that of __main__ is not known to the replica

    with served(Imported, Serving(port=port, at_once=2, queued=3)), ThreadPoolExecutor(12) as pool:
        answers = [*pool.map(status, [f"http://127.0.0.1:{port}/"] * 12)]
    counts = Counter(code for code, _ in answers)
    refused = [seconds for code, seconds in answers if code == 503]
    print("statuses", counts[200], counts[503], max(refused, default=99.0))


if __name__ == "__main__":
    main(int(sys.argv[1]))
