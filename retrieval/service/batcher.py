"""Answer requests that are waiting at the same time together: a model encodes 64 histories almost as fast as one.

Nothing waits for a batch to fill: what has come while the model was busy is the next batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Reply = TypeVar("Reply")


class Batcher(Generic[Question, Reply]):
    """Collects questions of one event loop, and answers them in a thread, one batch at a time.

    answer: gives for each question a reply, or the exception that its asker gets. most: questions in a batch.
    """

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Reply | Exception]], most: int = 64) -> None:
        self._answer, self._most = answer, most
        self._waiting: list[tuple[Question, asyncio.Future[Reply]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Reply:
        """The reply to a question. Raises the exception that `answer` gave for it, or raised."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            # an asker that has gone (its connection was closed) has cancelled its future
            batch = [each for each in self._waiting[: self._most] if not each[1].done()]
            del self._waiting[: self._most]
            if not batch:
                continue
            try:
                replies = await asyncio.to_thread(self._answer, [question for question, _ in batch])
            except Exception as error:  # of nobody's question in particular: every asker is told
                replies = [error] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
