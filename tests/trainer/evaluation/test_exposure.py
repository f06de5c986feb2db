"""Counts of recommended items: by hand, and summed over workers with any shares."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.helpers.tiny_runs import run_ranks
from trainer.evaluation.exposure import ExposureCounter
from trainer.evaluation.top_lists import TopLists

ITEMS, KS = 6, (1, 3)
LISTS = torch.tensor([[1, 2, 3], [1, 5, 0], [4, 1, 2], [2, 0, 0], [5, 4, 3]])
MASKED = LISTS.roll(1, dims=0)
TRAINED = np.array([0, 3, 1, 0, 2, 1])


def counted(rows: list[int]) -> list[list[int]]:
    counter = ExposureCounter(KS, ITEMS, torch.device("cpu"))
    for row in rows:
        counter.add(TopLists(LISTS[row : row + 1], MASKED[row : row + 1]))
    everything, masked = counter.gather(len(LISTS), TRAINED)
    assert [each.k for each in everything] == [each.k for each in masked] == list(KS)
    assert everything[0].users == len(LISTS)
    assert everything[0].trained is TRAINED
    return [each.shown.tolist() for each in (*everything, *masked)]


def test_counts_by_hand() -> None:
    top, three = [0, 2, 1, 0, 1, 1], [0, 3, 3, 2, 2, 2]
    assert counted([0, 1, 2, 3, 4]) == [top, three, top, three]


def _rank(rank: int, world: int, folder: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    shares = np.array_split(np.arange(len(LISTS)), world)
    (Path(folder) / f"{world}-{rank}.json").write_text(json.dumps(counted(shares[rank].tolist())))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 7])
def test_workers_add_up(tmp_path: Path, world: int) -> None:
    """7: more workers than users."""
    run_ranks(_rank, world, str(tmp_path))
    whole = counted([0, 1, 2, 3, 4])
    assert [json.loads((tmp_path / f"{world}-{rank}.json").read_text()) for rank in range(world)] == [whole] * world
