"""The memory of a process that frees and allocates tensors in every step, as training on a CPU does."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_runs import fork_server
from trainer import process
from trainer.process import GrowthLimit, keep_freed_memory, private_memory_mib, usage

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of glibc")

CPU = torch.device("cpu")
#: 80 MiB a step; by default glibc maps every block of more than 32 MiB anew
STEPS, TENSORS, FLOATS = 6, 2, 10 << 20


def of_a_new_process(function: Callable[[], list[float]]) -> list[float]:
    """What `function` returns in a process of its own: no other test's heap is measured, and none is changed."""
    receiver, sender = fork_server().Pipe(duplex=False)
    process = fork_server().Process(target=_send, args=(sender, function))
    process.start()
    assert receiver.poll(60), "no answer"
    answer: list[float] = receiver.recv()
    process.join()
    return answer


def _send(sender: Connection, function: Callable[[], list[float]]) -> None:
    sender.send(function())


def faults_by_default() -> list[float]:
    return [_step(TENSORS) for _ in range(STEPS)]


def faults_of_kept_memory() -> list[float]:
    keep_freed_memory()
    growth, faults = GrowthLimit(CPU), []
    for _ in range(STEPS):
        faults.append(_step(TENSORS))
        growth.step_done()
    return faults


def _step(tensors: int) -> float:
    """Allocate, fill and free this many tensors; return the number of page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(FLOATS) for _ in range(tensors)]
    del held
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_equal_steps_keep_their_memory() -> None:
    pages = TENSORS * FLOATS * 4 / resource.getpagesize()
    assert min(of_a_new_process(faults_by_default)) > pages / 4, "a page fault is free here: the test shows nothing"
    first, *others = of_a_new_process(faults_of_kept_memory)
    assert first > pages / 4
    assert sum(others) < pages  # one of them may need one block more than fits where the first step's were


def memory_around_a_large_step() -> list[float]:
    """MiB after an ordinary step, a large one, and ordinary ones; then the same, when large steps go on."""
    keep_freed_memory()
    growth, memory = GrowthLimit(CPU), []
    for tensors in (TENSORS, 5 * TENSORS, TENSORS, TENSORS, 5 * TENSORS, 5 * TENSORS, 5 * TENSORS):
        _step(tensors)
        growth.step_done()
        memory.append(private_memory_mib() or 0.0)
    return memory


def test_what_a_large_step_needed_is_returned_and_a_lasting_need_is_followed() -> None:
    ordinary, *after, returned, lasting, kept = of_a_new_process(memory_around_a_large_step)
    assert max(after, default=0.0) < 1.25 * ordinary
    assert returned < 1.25 * ordinary
    assert min(lasting, kept) > ordinary + 200  # not returned after each step: the limit has risen


def heap_by_default() -> list[float]:
    os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)  # a training in the process of the tests has set it
    return [_heap_growth()]


def heap_of_kept_memory() -> list[float]:
    keep_freed_memory()
    return [_heap_growth()]


def _heap_growth() -> float:
    """MiB that operations on 500 shapes add, each shape once."""
    before = private_memory_mib() or 0.0
    for rows in range(1000, 1500):
        torch.nn.functional.gelu(torch.ones(rows, 8))
    return (private_memory_mib() or 0.0) - before


def test_operations_of_many_shapes_leave_nothing_behind() -> None:
    assert of_a_new_process(heap_by_default)[0] > 5, "oneDNN keeps nothing here: the test shows nothing"
    assert of_a_new_process(heap_of_kept_memory)[0] < 3


def test_usage_counts_open_files() -> None:
    before = usage()
    with Path(__file__).open("rb"):
        assert usage()["open_files"] == before["open_files"] + 1
    assert usage()["open_files"] == before["open_files"]
    assert 10 < before["memory_mib"] < 1e6


def test_sums_are_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.sum_over_ranks([1.5, 2]) == [1.5, 2]
    monkeypatch.setattr(process, "world", lambda: (0, 3))
    shares = [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]
    monkeypatch.setattr(
        process.dist, "all_gather_object", lambda out, own: out.__setitem__(slice(3), [own, *shares[1:]])
    )
    assert process.sum_over_ranks(shares[0]) == [111, 222]
