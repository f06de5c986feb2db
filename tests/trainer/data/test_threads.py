"""Shards and digests by several threads: in order, within bounds, and the bytes of one thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.data.format import shards, threads, writer
from trainer.data.format.content import Content
from trainer.data.format.threads import in_order


def test_results_come_in_the_order_of_the_units_and_wait_within_bounds() -> None:
    begun: list[int] = []

    def work(unit: int) -> int:
        begun.append(unit)
        time.sleep(0.02 if unit % 3 == 0 else 0)
        return unit

    taken = []
    for result in in_order(work, range(40), threads=3):
        taken.append(result)
        assert len(begun) <= len(taken) + 2 * 3
    assert taken == list(range(40))


def test_several_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)
    assert list(in_order(lambda unit: together.wait() >= 0 and unit, range(3), threads=3)) == [0, 1, 2]


def test_the_first_exception_ends_it() -> None:
    def work(unit: int) -> int:
        if unit >= 2:
            raise ValueError(unit)
        return unit

    with pytest.raises(ValueError, match="2"):
        list(in_order(work, range(9), threads=4))


def write(out: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 300)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(1, 2001, offsets[-1]).astype(np.int32)
    vectors = rng.standard_normal((2000, 8), dtype=np.float32)
    content = Content((8,), lambda start, stop: (vectors[start:stop], np.ones(stop - start, bool)), "video", "made")
    writer.write_dataset(
        out,
        user_ids=[f"u{n}" for n in range(len(lengths))],
        item_ids=[f"i{n}" for n in range(2000)],
        offsets=offsets,
        items=items,
        content={"visual": content},
    )
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"}


def test_any_number_of_threads_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCKS_PER_SHARD", 3)
    monkeypatch.setattr(shards, "BLOCK_ROWS", 256)
    written = []
    for number in (1, 5):
        monkeypatch.setattr(threads, "usable_cores", lambda number=number: number)
        written.append(write(tmp_path / str(number)))
    assert len([name for name in written[0] if name.startswith("rows-")]) > 4
    assert written[0] == written[1]
