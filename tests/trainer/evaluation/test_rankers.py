"""The top-k lists of every ranker against the scores of all users and items, and the metrics of these lists."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import Baseline
from models.errors import UserError
from retrieval.exact import Histories, for_similarity
from tests.helpers.untrained import Opened, opened
from trainer.evaluation import rankers
from trainer.evaluation.catalogue_index import CatalogueIndex, Task
from trainer.evaluation.config import EvalConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.rankers import Ranker, make_ranker

K = 7


def ranker_of(it: Opened, config: EvalConfig) -> Ranker:
    loaded, model = it
    task = Task(loaded.dataset.manifest.users, loaded.device, lambda: pytest.fail("no option was left open"))
    return make_ranker(model, config, task, CatalogueIndex())


def best(it: Opened, masked: bool) -> list[list[int]]:
    """The best K items of each user by sorting, without the items seen before the test target."""
    loaded, model = it
    dataset, lists = loaded.dataset, []
    (batch,) = loaded.evaluation_batches("test", np.arange(dataset.manifest.users), 1000)
    with torch.no_grad():
        if isinstance(model, Baseline):
            scores = model.scores(batch)
        else:
            users, items = (
                for_similarity(x, model.similarity) for x in (model.user_vectors(batch), model.item_vectors())
            )
            scores = users @ items.T
    for user, row in enumerate(scores.tolist()):
        known = set(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1] - 1].tolist()) if masked else set()
        lists.append(sorted(set(range(1, len(row))) - known, key=lambda item: (-row[item], item))[:K])
    return lists


@pytest.mark.parametrize(("model", "index"), [("sasrec", "exact"), ("sasrec", "flat"), ("popularity", "exact")])
def test_lists_equal_plain_sorting(data: Path, model: str, index: str) -> None:
    it = opened(data, model)
    loaded = it[0]
    (batch,) = loaded.evaluation_batches("test", np.arange(80), 1000)
    offsets, items = loaded.dataset.offsets, loaded.dataset.items
    known = Histories.of([items[a : b - 1].tolist() for a, b in itertools.pairwise(offsets)])
    with torch.no_grad():
        ranker = ranker_of(it, EvalConfig(index=index))
        ranks, lists = ranker.rank(batch, known, K)
        again, none = ranker.rank(batch, known, 0)
    assert lists is not None
    assert none is None
    assert torch.equal(ranks.all_items, again.all_items)
    assert lists.all_items.tolist() == best(it, masked=False)
    assert lists.history_masked.tolist() == best(it, masked=True)


def test_masking_a_history_leaves_whole_lists(data: Path) -> None:
    """The first 20 without the history reach as much deeper as the history is long."""
    it = opened(data, "sasrec")
    (batch,) = it[0].evaluation_batches("test", np.arange(1), 1)
    with torch.no_grad():
        ranker = ranker_of(it, EvalConfig(index="flat", depth=20))
        _, whole = ranker.rank(batch, Histories.of([[]]), 20)
        _, deep = ranker_of(it, EvalConfig(index="flat", depth=60)).rank(batch, Histories.of([[]]), 60)
        assert whole is not None
        assert deep is not None
        seen = whole.all_items[0].tolist()
        ranks, lists = ranker.rank(replace(batch, target=deep.all_items[:, 20]), Histories.of([seen]), 20)
    assert lists is not None
    assert lists.all_items.tolist() == [seen]
    assert lists.history_masked.tolist() == [deep.all_items[0, 20:40].tolist()]
    assert (ranks.all_items.item(), ranks.history_masked.item()) == (0, 1), "beyond the depth; the first that is new"
    described = ranker.describe()
    assert described is not None
    assert described["short_users"] == 0


def test_users_for_whom_an_index_finds_too_few_are_counted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 items make one list of ivf; with lists of at least 3 items there are 20, of which 2 are looked into."""
    it = opened(data, "sasrec")
    monkeypatch.setattr("retrieval.index.kmeans.TRAINING_POINTS", 3)
    (batch,) = it[0].evaluation_batches("test", np.arange(80), 80)
    with torch.no_grad():
        ranker = ranker_of(it, EvalConfig(index="ivf", index_options=("nprobe=2",), depth=30))
        _, lists = ranker.rank(batch, Histories.of([[]] * 80), 20)
    assert lists is not None
    found = (lists.all_items > 0).sum(1)
    described = ranker.describe()
    assert described is not None
    assert (found < 20).any()
    assert described["approximate"]
    assert described["short_users"] >= int((found < 20).sum())
    assert described["recall@20"] < 0.95
    monkeypatch.setattr(rankers, "sum_over_ranks", lambda own: [3 * each for each in own])
    of_three = ranker.describe()
    assert of_three is not None
    for key, times in (("short_users", 3), ("recall_users", 3), ("recall@20", 1)):
        assert of_three[key] == pytest.approx(times * described[key])


def test_metrics_of_lists_are_reported_at_the_end_whatever_the_batch_size(data: Path) -> None:
    it = opened(data, "sasrec")
    asked: dict[str, Any] = {"metrics": ("HR", "Coverage", "Novelty"), "ks": (1, K)}
    loaded, model = it
    validation = evaluate(model, loaded, "validation", EvalConfig(**asked))
    assert list(validation.metrics()) == ["HR@1", f"HR@{K}"], "not asked of a validation"
    reports = []
    for size in (7, 80):
        result = evaluate(model, loaded, "test", EvalConfig(batch_size=size, **asked), with_lists=True)
        reports.append({key: value for key, value in result.report().items() if key != "seconds"})
    assert reports[0] == reports[1]
    (report, _), counts = reports, loaded.dataset.train_counts()
    keys = ["HR@1", "Coverage@1", "Novelty@1", f"HR@{K}", f"Coverage@{K}", f"Novelty@{K}"]
    assert [key for key in report if "@" in key] == list(report["masked"]) == keys
    assert [key for key in report["cold"] if "@" in key] == ["HR@1", f"HR@{K}"], "lists are not of one target"
    for values, masked in ((report, False), (report["masked"], True)):
        lists = best(it, masked)
        assert values[f"Coverage@{K}"] == len({item for row in lists for item in row}) / 60
        bits = [-np.log2(max(1, counts[row[0]]) / counts.sum()) for row in lists]
        assert values["Novelty@1"] == pytest.approx(np.mean(bits))


def test_an_index_over_a_system_without_vectors_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="no item vectors"):
        ranker_of(opened(data, "popularity"), EvalConfig(index="flat"))
