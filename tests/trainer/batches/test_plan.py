"""The plan of an epoch: permutations, orders and shares, for many sizes, numbers of workers and shards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.plan import Order, Permutation, Plan, ShuffledOrder, WindowOrder

keys = st.lists(st.integers(0, 2**63), min_size=1, max_size=4)


@given(size=st.integers(0, 3000), key=keys)
def test_a_permutation_meets_every_number_once(size: int, key: list[int]) -> None:
    assert sorted(Permutation(size, key)(torch.arange(size)).tolist()) == list(range(size))


@given(size=st.integers(1, 10**12), key=keys, data=st.data())
def test_a_permutation_is_pure_and_point_by_point(size: int, key: list[int], data: st.DataObject) -> None:
    positions = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=torch.int64)
    before = positions.clone()
    image = Permutation(size, key)(positions)
    assert torch.equal(positions, before)
    assert ((image >= 0) & (image < size)).all()
    alone = [int(Permutation(size, key)(positions[i : i + 1])[0]) for i in range(len(positions))]
    assert image.tolist() == alone
    assert len(set(image.tolist())) == len(set(positions.tolist()))


def test_every_row_lands_everywhere_equally_often() -> None:
    """Chi-square over 2,000 keys for each of 13 rows: 12 degrees of freedom, p of each bound is about 1e-6."""
    size, draws = 13, 2000
    counts = np.zeros((size, size))
    for key in range(draws):
        counts[np.arange(size), Permutation(size, (7, key))(torch.arange(size)).numpy()] += 1
    statistic = ((counts - draws / size) ** 2 / (draws / size)).sum(axis=1)
    assert statistic.max() < 52


def test_neighbours_do_not_stay_neighbours() -> None:
    """In a random order, the number of rows that are followed by their own successor is about Poisson(1)."""
    size = 1000
    followed = [
        int((np.diff(Permutation(size, (1, key))(torch.arange(size)).numpy()) == 1).sum()) for key in range(300)
    ]
    assert abs(np.mean(followed) - 1) < 5 / math.sqrt(300)


@pytest.mark.parametrize("order", [ShuffledOrder(500, 3), WindowOrder((100, 150, 50, 200), 2, 3)])
def test_epochs_and_seeds_differ(order: Order) -> None:
    rows = {epoch: tuple(order(epoch, np.arange(500)).tolist()) for epoch in range(1, 9)}
    assert len(set(rows.values())) == 8
    assert rows[1] == tuple(order(1, np.arange(500)).tolist())
    assert tuple(ShuffledOrder(500, 4)(1, np.arange(500)).tolist()) != rows[1]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200), batch=st.integers(1, 64), world=st.integers(1, 8), accumulation=st.integers(1, 4),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_each_row_once_an_epoch_on_any_world(rows: int, batch: int, world: int, accumulation: int, seed: int) -> None:
    plan, order = Plan(rows, batch), ShuffledOrder(rows, seed)
    seen: list[int] = []
    for step in range(plan.steps):
        shares = [plan.share(step, rank, world, accumulation) for rank in range(world)]
        assert [len(share) for share in shares] == [accumulation] * world  # no rank waits for another one
        parts = [part for share in shares for part in share]
        assert all(len(positions) for positions, _ in parts)
        assert math.isclose(sum(weight for _, weight in parts), 1, rel_tol=1e-12)
        counted = np.concatenate([positions for positions, weight in parts if weight])
        assert counted.tolist() == plan.positions(step).tolist()  # the same global batch, in the same order
        assert all(weight in (0.0, len(positions) / len(counted)) for positions, weight in parts)
        seen += order(1, counted).tolist()
    assert sorted(seen) == list(range(rows))


def test_a_weighted_mean_of_shares_is_the_mean_of_the_batch() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    plan = Plan(1000, 130)
    for step in (0, plan.steps - 1):
        wanted = values[plan.positions(step)].mean()
        for world in range(1, 9):
            parts = [part for rank in range(world) for part in plan.share(step, rank, world, 3)]
            assert sum(weight * values[rows].mean() for rows, weight in parts) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shards", range(1, 18))
def test_a_window_order_meets_every_row_once(shards: int) -> None:
    rng = np.random.default_rng(shards)
    sizes = tuple(rng.integers(1, 40, shards).tolist())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for window in (1, 2, 3, 4, 16, 17, 20):
        order = WindowOrder(sizes, window, seed=5)
        rows = order(2, np.arange(starts[-1]))
        assert sorted(rows.tolist()) == list(range(starts[-1]))
        some = rng.integers(0, starts[-1], 30)
        assert np.array_equal(order(2, some), rows[some])
        numbers, _ = order.window_of(2, np.arange(starts[-1]))
        assert (np.diff(numbers) >= 0).all(), "windows are read one after the other"
        for number in range(-(-shards // window)):
            read = np.unique(np.searchsorted(starts, rows[numbers == number], side="right") - 1)
            assert sorted(read.tolist()) == sorted(order.window_shards(2, number).tolist())
            assert len(read) <= window


def test_a_window_order_takes_a_shard_without_rows() -> None:
    order = WindowOrder((3, 0, 4, 0, 0, 2), 2, seed=1)
    for epoch in range(20):
        assert sorted(order(epoch, np.arange(9)).tolist()) == list(range(9))
