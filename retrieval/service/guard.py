"""ASGI middleware around the service: a token, limits on body and rate, one log line and one measurement a request."""

from __future__ import annotations

import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retrieval.service.measures import Measures

_LOG = logging.getLogger("mealrec.service")
#: paths that need no token and have no limit: whoever looks after the service asks them; the page asks for the token
OPEN = ("/health", "/ready", "/metrics", "/")
_TOO_LARGE, _UNAUTHORIZED, _TOO_MANY = 413, 401, 429
_HEADERS = {_UNAUTHORIZED: ((b"www-authenticate", b"Bearer"),), _TOO_MANY: ((b"retry-after", b"1"),)}
Message = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """token: what `Authorization: Bearer` must hold; None admits everybody. body: most bytes of a request.

    rate: most requests per second of one replica, on average; bursts of as many are let through. 0: any number.
    """

    token: str | None = None
    body: int = 1 << 20
    rate: float = 0.0


class _Refused(Exception):
    """status, and a sentence for the client."""


class Guard:
    """An ASGI application that passes to `app` what keeps within `limits`."""

    def __init__(
        self, app: Any, limits: Limits, measures: Measures, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._limits, self._measures, self._clock = app, limits, measures, clock
        self._allowance, self._filled = max(1.0, limits.rate), clock()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request (or pass on a message of the server's life)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, answer, request = time.perf_counter(), _Answer(send), uuid.uuid4().hex[:12]
        try:
            if scope["path"] not in OPEN:
                self._admit(scope)
            await self._app(scope, self._bounded(receive, answer), answer)
        except _Refused as refused:
            await answer.refuse(refused)
        finally:
            path = _route(scope)
            seconds = time.perf_counter() - started
            self._measures.requests.labels(path, str(answer.status or 500)).inc()
            self._measures.seconds.labels(path).observe(seconds)
            line = {"id": request, "method": scope["method"], "path": path, "status": answer.status or 500}
            _LOG.info(json.dumps({**line, "ms": round(1000 * seconds, 2)}))

    def _admit(self, scope: Message) -> None:
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        if self._limits.token is not None:
            given = headers.get("authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self._limits.token}".encode()):
                raise _Refused(_UNAUTHORIZED, "this service needs a token: send the header Authorization: Bearer TOKEN")
        length = headers.get("content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body:
            raise self._too_large()
        if self._limits.rate and not self._take():
            raise _Refused(_TOO_MANY, f"more than {self._limits.rate:g} requests a second; ask again in a second")

    def _too_large(self) -> _Refused:
        return _Refused(_TOO_LARGE, f"a request holds at most {self._limits.body:,} bytes")

    def _take(self) -> bool:
        """Whether a request is within the rate: a bucket that fills with `rate` a second and holds as many."""
        now = self._clock()
        self._allowance = min(max(1.0, self._limits.rate), self._allowance + (now - self._filled) * self._limits.rate)
        self._filled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _bounded(self, receive: Any, answer: _Answer) -> Any:
        """`receive`, which fails when more than the limit has come: a body need not say how long it is."""
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message: Message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.body:
                answer.instead = self._too_large()
                raise answer.instead
            return message

        return bounded


class _Answer:
    """Passes the answer on, and keeps its status. instead: the refusal to send whatever the application answers."""

    def __init__(self, send: Any) -> None:
        self._send, self.status = send, 0
        self.instead: _Refused | None = None

    async def __call__(self, message: Message) -> None:
        if self.instead is not None:
            await self.refuse(self.instead)
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, refused: _Refused) -> None:
        """Send the refusal, unless an answer has begun already."""
        if self.status:
            return
        self.status, sentence = refused.args
        headers = [(b"content-type", b"application/json"), *_HEADERS.get(self.status, ())]
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": json.dumps({"error": sentence}).encode()})


def _route(scope: Message) -> str:
    """The path of the route that answered: paths that clients make up would be metrics without end."""
    route = scope.get("route")
    return str(getattr(route, "path", "other")) if scope["path"] not in OPEN else str(scope["path"])
