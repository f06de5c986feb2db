"""Groups of users by history and target, against counts made another way."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.contract import Moments
from models.options.base import ContentField
from models.tensor_table import TensorTable
from retrieval.metrics.registry import MetricChoice
from tests.helpers import small_dataset
from trainer.analysis.groups import Users, _seen_before, content_similarity, doubling, groupings
from trainer.batches.loader import Loaded, load
from trainer.data.format.dataset import Dataset
from trainer.evaluation.run_ranks import RunRanks

CHOICE = MetricChoice(("HR", "NDCG"), (10,))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("small") / "data"
    small_dataset.write(folder)
    return load(Dataset.open(folder), torch.device("cpu"), seed=0)


def ranks_of(loaded: Loaded, seed: int) -> RunRanks:
    users = loaded.dataset.manifest.users
    rank = np.random.default_rng(seed).integers(0, 30, users)
    target = loaded.dataset.items[loaded.dataset.offsets[1:] - 1]
    return RunRanks(np.arange(users), target, rank, rank, loaded.dataset.cold_mask("test"))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_doubling_puts_each_value_into_the_range_of_its_label(values: list[int]) -> None:
    labels, places = doubling(np.array(values))
    for value, place in zip(values, places.tolist(), strict=True):
        low, _, high = labels[place].replace(",", "").partition("\N{EN DASH}")
        assert int(low) <= value <= int(high or low)


def test_groups_share_out_the_users_and_their_means(loaded: Loaded) -> None:
    ranks, other = ranks_of(loaded, 1), ranks_of(loaded, 2)
    users = Users(ranks, CHOICE, other)
    overall = users.group("all", np.ones(users.count, bool))
    found = {each.name: each for each in groupings(users, loaded, ranks)}
    assert {"history", "popularity", "cold", "similarity-text"} <= set(found)
    for name in ("history", "popularity", "cold"):
        groups = found[name].groups
        assert sum(each.users for each in groups) == users.count
        for key in CHOICE.keys:
            assert sum(each.share * each.metrics[key] for each in groups) == pytest.approx(overall.metrics[key])
            assert sum(each.share * each.against[key] for each in groups) == pytest.approx(overall.against[key])


def test_history_and_popularity_are_counted_as_in_plain_loops(loaded: Loaded) -> None:
    offsets, items = small_dataset.interactions()
    histories = [items[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
    trained = Counter(item for history in histories for item in history[:-2])
    ranks = ranks_of(loaded, 1)
    found = {each.name: each for each in groupings(Users(ranks, CHOICE, None), loaded, ranks)}
    lengths = Counter(len(history) - 1 for history in histories)
    groups = {each.label: each.users for each in found["history"].groups}
    assert groups.get("2", 0) == lengths[2]
    assert groups["17\N{EN DASH}32"] == sum(count for length, count in lengths.items() if 17 <= length <= 32)
    popularity = {each.label: each.users for each in found["popularity"].groups}
    assert popularity.get("0", 0) == sum(trained[history[-1]] == 0 for history in histories)
    assert ("repeat" in found) == any(history[-1] in history[:-1] for history in histories)


def test_a_target_in_the_own_history_alone_counts_as_seen() -> None:
    offsets, items = np.array([0, 3, 6, 10]), np.array([1, 2, 1, 2, 3, 1, 5, 5, 5, 6])
    assert _seen_before(offsets, items, np.array([1, 1, 6])).tolist() == [True, False, False]


def test_similarity_is_the_cosine_without_the_mean_and_unknown_without_content(loaded: Loaded) -> None:
    mean = loaded.table.moments("text").mean.numpy()
    rows = np.arange(1, 40), np.arange(2, 41)
    first, second = (loaded.table.gather("text", torch.from_numpy(each)).numpy() - mean for each in rows)
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert np.allclose(content_similarity(loaded.table, "text", *rows), cosine, atol=1e-4)
    there = torch.tensor([False, True, False, True])
    moments: dict[ContentField, Moments] = {"visual": Moments(torch.zeros(2), torch.ones(2))}
    table = TensorTable(4, {"visual": torch.ones(4, 2)}, {"visual": there}, {}, moments)
    found = content_similarity(table, "visual", np.array([1, 1, 2]), np.array([3, 2, 3]))
    assert np.isfinite(found).tolist() == [True, False, False]


def test_an_interval_is_that_of_a_mean(loaded: Loaded) -> None:
    ranks = ranks_of(loaded, 3)
    group = Users(ranks, CHOICE, None).group("all", np.ones(len(ranks.user), bool))
    hits = ((ranks.rank >= 1) & (ranks.rank <= 10)).astype(float)
    assert group.interval["HR@10"] == pytest.approx(1.96 * hits.std(ddof=1) / len(hits) ** 0.5)
    assert Users(ranks, CHOICE, None).group("one", np.arange(len(hits)) == 0).interval["HR@10"] == 0.0
