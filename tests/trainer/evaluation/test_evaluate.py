"""Evaluation on a prepared dataset: ranks by a loop over users and items, indices, every way of sampling."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import SequenceModel
from models.errors import UserError
from retrieval.exact import for_similarity
from tests.helpers.untrained import Opened, opened
from trainer.data.format.splits import SPLITS, Split
from trainer.evaluation.config import EvalConfig
from trainer.evaluation.evaluate import Evaluation, choose_inference, evaluate


def run(opened: Opened, split: Split, **settings: Any) -> Evaluation:
    loaded, model = opened
    return evaluate(model, loaded, split, EvalConfig(**settings))


def brute_force(opened: Opened, split: Split) -> tuple[list[int], list[int]]:
    """Ranks among all items, and without all items that the user had seen before, by plain loops."""
    loaded, model = opened
    assert isinstance(model, SequenceModel)
    dataset = loaded.dataset
    held = 1 if split == "test" else 2
    with torch.no_grad():
        items = for_similarity(model.item_vectors(), model.similarity)
        plain, masked = [], []
        for user in range(dataset.manifest.users):
            (batch,) = loaded.evaluation_batches(split, np.array([user]), 1)
            vector = for_similarity(model.user_vectors(batch), model.similarity)[0]
            scores = [float((vector * items[row]).sum()) for row in range(dataset.manifest.items + 1)]
            target = int(dataset.items[dataset.offsets[user + 1] - held])
            known = set(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1] - held].tolist()) - {target}
            others = [row for row in range(1, len(scores)) if row != target]
            plain.append(1 + sum(scores[row] >= scores[target] for row in others))
            masked.append(1 + sum(scores[row] >= scores[target] for row in others if row not in known))
    return plain, masked


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("model", ["sasrec", "tedrec"])
def test_ranks_equal_a_brute_force_loop(data: Path, model: str, split: Split) -> None:
    it = opened(data, model)
    plain, masked = brute_force(it, split)
    result = run(it, split)
    assert result.rank.tolist() == plain
    assert result.rank_masked.tolist() == masked
    assert plain != masked
    dataset = it[0].dataset
    longest = int(np.diff(dataset.offsets).max())
    assert longest - 2 > dataset.manifest.max_length, "some histories are longer than what the model reads"


def test_targets_and_cold_flags(data: Path) -> None:
    it = opened(data, "sasrec")
    dataset = it[0].dataset
    starts = dataset.offsets.tolist()
    trained = {int(item) for a, b in itertools.pairwise(starts) for item in dataset.items[a : b - 2]}
    for split, held in (("validation", 2), ("test", 1)):
        result = run(it, split)  # type: ignore[arg-type]
        assert result.user.tolist() == list(range(dataset.manifest.users))
        assert result.target.tolist() == dataset.items[dataset.offsets[1:] - held].tolist()
        assert result.cold.tolist() == [target not in trained for target in result.target.tolist()]
        assert 0 < result.cold.sum() < len(result.cold)
        report = result.report()
        assert report["warm"]["users"] + report["cold"]["users"] == report["users"] == 80
        assert report["HR@10"] == pytest.approx(np.mean([1 <= rank <= 10 for rank in result.rank]))
        assert report["masked"]["HR@20"] == pytest.approx(np.mean([1 <= rank <= 20 for rank in result.rank_masked]))
        why = "60 items, fewer than 100,000"
        assert report["index"] == {"kind": "exact", "approximate": False, "why": why}


def test_every_way_of_sampling_is_independent_of_the_batch_size(data: Path) -> None:
    it = opened(data, "mealrec", "model.mix=0")  # mix > 0 adds x_0, which would hide small differences
    model, ranks = it[1], {}
    assert isinstance(model, SequenceModel)
    assert len(model.inference_choices) == 4
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # the denoisers start as "take off nothing", in which all ways are one
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    for way in model.inference_choices:
        model.inference = way
        results = [run(it, "test", batch_size=size) for size in (7, 33, 80)]
        assert all(np.array_equal(results[0].rank, other.rank) for other in results[1:]), way
        assert all(np.array_equal(results[0].rank_masked, other.rank_masked) for other in results[1:]), way
        ranks[way] = tuple(results[0].rank.tolist())
    assert len(set(ranks.values())) == 4, "each way gives ranks of its own"


@pytest.mark.parametrize("model", ["sasrec", "tedrec"])
def test_a_flat_index_gives_the_exact_ranks_within_its_depth(data: Path, model: str) -> None:
    it = opened(data, model)
    exact, whole, short = run(it, "test"), run(it, "test", index="flat"), run(it, "test", index="flat", depth=20)
    assert whole.rank.tolist() == exact.rank.tolist()
    assert whole.rank_masked.tolist() == exact.rank_masked.tolist()
    assert short.rank.tolist() == [rank if rank <= 20 else 0 for rank in exact.rank.tolist()]
    assert short.metrics() == exact.metrics()
    assert short.rank_masked.tolist() == [rank if rank <= 20 else 0 for rank in exact.rank_masked.tolist()]
    assert short.index is not None
    assert (short.index["kind"], short.index["recall@20"], short.index["recall_users"]) == ("flat", 1.0, 80)
    assert (short.index["approximate"], short.index["depth"], whole.index["depth"]) == (False, 20, 60)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_an_approximate_index_reports_its_recall(data: Path, kind: str) -> None:
    it = opened(data, "sasrec")
    result = run(it, "test", index=kind, recall_sample=30, batch_size=16)
    assert result.index is not None
    assert result.index["kind"] == kind
    assert result.index["approximate"] is True
    assert 0.2 < result.index["recall@20"] <= 1
    assert result.index["recall_users"] == 30
    assert result.report()["index"]["description"]
    exact = run(it, "test")
    if kind == "ivfpq":
        return  # what it finds is in the order of rounded vectors
    assert (result.rank[result.rank > 0] <= exact.rank[result.rank > 0]).all(), "what is missed only moves others up"


def test_saved_ranks_are_plain_arrays(data: Path, tmp_path: Path) -> None:
    result = run(opened(data, "sasrec"), "test")
    result.save(tmp_path / "ranks.npz")
    arrays = np.load(tmp_path / "ranks.npz", allow_pickle=False)
    assert sorted(arrays) == ["cold", "rank", "rank_masked", "target", "user"]
    assert np.array_equal(arrays["rank"], result.rank)


def test_a_model_that_diverged_is_a_user_error(data: Path) -> None:
    it = opened(data, "sasrec")
    with torch.no_grad():
        it[1].get_submodule("item_embedding").weight[5] = torch.nan  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match="NaN"):
        run(it, "validation")


def test_the_best_way_on_validation_is_chosen_and_the_cheapest_of_equals() -> None:
    assert choose_inference({"a": 0.1, "b": 0.3, "c": 0.3}) == "b"
    with pytest.raises(UserError):
        choose_inference({})
