"""Questions that come while others are answered are answered together; each asker gets its own reply or error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from retrieval.service.batcher import Batcher


def test_what_waits_is_one_batch_and_errors_go_to_their_askers() -> None:
    first, batches = threading.Event(), list[list[int]]()

    def answer(questions: Sequence[int]) -> list[int | Exception]:
        batches.append([*questions])
        first.wait(10)
        return [ValueError(f"{each}") if each == 3 else 10 * each for each in questions]

    async def ask() -> list[int | BaseException]:
        batcher = Batcher[int, int](answer, most=4)
        asked = [asyncio.create_task(batcher.ask(0))]
        while not batches:
            await asyncio.sleep(0.001)
        asked += [asyncio.create_task(batcher.ask(n)) for n in range(1, 8)]
        await asyncio.sleep(0.01)
        asked[2].cancel()  # its connection was closed
        first.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    replies = asyncio.run(ask())
    assert batches == [[0], [1, 3, 4], [5, 6, 7]]
    assert [replies[n] for n in (0, 1, 4, 5, 6, 7)] == [0, 10, 40, 50, 60, 70]
    assert isinstance(replies[2], asyncio.CancelledError)
    assert repr(replies[3]) == "ValueError('3')"


def test_when_all_fails_everybody_is_told_and_the_next_is_answered() -> None:
    def answer(questions: Sequence[int]) -> list[int | Exception]:
        if 0 in questions:
            raise MemoryError("full")
        return [*questions]

    async def ask() -> int:
        batcher = Batcher[int, int](answer)
        with pytest.raises(MemoryError, match="full"):
            await batcher.ask(0)
        return await batcher.ask(1)

    assert asyncio.run(ask()) == 1
