"""Which index an evaluation chooses, who builds it and how often, and on which device it is searched."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import torch.distributed as dist

from models.errors import UserError
from tests.helpers.tiny_runs import run_ranks
from tests.helpers.untrained import opened
from trainer.evaluation import catalogue_index
from trainer.evaluation.catalogue_index import CatalogueIndex, Choice, Task
from trainer.evaluation.config import EvalConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.report import how_ranked

CPU = torch.device("cpu")


def vectors(count: int = 400, seed: int = 0) -> np.ndarray:
    """Around 40 centres, which the lists of an index follow."""
    centres = np.random.default_rng(9).normal(size=(40, 16))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, count)] + 0.2 * rng.normal(size=(count, 16))).astype(np.float32)


def task(device: torch.device = CPU, users: int = 10**6) -> Task:
    return Task(users, device, lambda: vectors(100, seed=1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 400 items were many."""
    monkeypatch.setattr("retrieval.index.kinds.EXACT_BELOW", 100)
    monkeypatch.setattr("retrieval.index.kmeans.TRAINING_POINTS", 5)


def chosen(items: np.ndarray, to_do: Task, **settings: Any) -> Choice:
    return CatalogueIndex().of(items, EvalConfig(**settings), to_do)


@pytest.mark.usefixtures("small")
def test_an_index_is_chosen_where_it_is_less_work_and_finds_enough() -> None:
    choice = chosen(vectors(), task())
    assert choice.index is not None
    assert choice.index.record.kind == "ivf"
    assert choice.index.record.tuned is not None
    assert (choice.index.record.tuned.enough, choice.index.record.tuned.queries) == (True, 100)
    assert choice.why.startswith("399 items; building it takes the work of ranking")
    assert chosen(vectors(99), task()).why == "98 items, fewer than 100"
    assert "and there are 300" in chosen(vectors(), task(users=300)).why


@pytest.mark.usefixtures("small")
def test_ranking_is_exact_where_an_index_would_search_most_lists() -> None:
    """Vectors without clusters."""
    noise = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    choice = chosen(noise, Task(10**6, CPU, lambda: -noise[:100]), recall=0.999)
    assert choice.index is None
    assert choice.why.startswith("for a recall of 0.999 an index searches")


@pytest.mark.usefixtures("small")
def test_ranking_is_exact_where_faiss_is_missing_or_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert "FAISS that is installed uses none" in chosen(vectors(), task(torch.device("cuda", 1))).why
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert chosen(vectors(), task()).why == "FAISS is not installed"
    with pytest.raises(UserError, match="not installed"):
        chosen(vectors(), task(), index="flat")


def test_a_worker_searches_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def moved(_: object, number: int, index: object) -> object:
        asked.append(number)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 8)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", moved, raising=False)
    for device in (torch.device("cuda", 3), torch.device("cuda", 0), CPU):
        chosen(vectors(), task(device), index="ivf", index_options=("nprobe=4",))
    assert asked == [3, 0], "and none for a model on a CPU, whatever GPUs there are"


def test_the_options_of_the_configuration_are_used() -> None:
    choice = chosen(vectors(), task(), index="ivfpq", index_options=("nprobe=2", "bytes=4"))
    assert choice.index is not None
    parameters = choice.index.record.parameters
    assert (parameters["nprobe"], parameters["bytes"], choice.why) == (2, 4, "")


def _rank(rank: int, world: int, folder: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    built, build_index = list[str](), catalogue_index.build_index

    def counted(*args: Any, **kwargs: Any) -> Any:
        built.append(args[1])
        return build_index(*args, **kwargs)

    catalogue_index.build_index = counted
    kept, config = CatalogueIndex(), EvalConfig(index="ivf")
    found = [kept.of(vectors(seed=seed), config, task()) for seed in (0, 0, 2)]
    answers = [each.index.search(vectors(30, seed=5), 10)[1].tolist() for each in found if each.index]
    said = ""
    try:
        kept.of(vectors(), EvalConfig(index="ivf", index_options=("nprobe=999",)), task())
    except UserError as error:
        said = str(error)
    (Path(folder) / f"{rank}.json").write_text(json.dumps([len(built), answers, said]))
    dist.destroy_process_group()


def test_one_worker_builds_and_all_search(tmp_path: Path) -> None:
    """Once for the same vectors, anew for others; a mistake that rank 0 finds is told on every rank."""
    run_ranks(_rank, 3, str(tmp_path))
    (first, *others) = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [first[0], *(built for built, _, _ in others)] == [3, 0, 0], "two indices and one attempt, on rank 0 alone"
    assert len(first[1]) == 3
    assert first[1][0] == first[1][1] != first[1][2]
    assert "nprobe is 999" in first[2]
    assert all(other[1:] == first[1:] for other in others)


def test_an_evaluation_by_auto_says_how_it_ranked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.index.kinds.EXACT_BELOW", 20)
    monkeypatch.setattr("retrieval.index.kinds.SAMPLE", 0)
    monkeypatch.setattr("retrieval.index.kmeans._ITERATIONS", 1)
    monkeypatch.setattr("trainer.evaluation.catalogue_index._MOST_LISTS", 1.0)
    monkeypatch.setattr("retrieval.index.kmeans.TRAINING_POINTS", 3)
    loaded, model = opened(data, "sasrec")
    result = evaluate(model, loaded, "test", EvalConfig(recall=0.2, recall_sample=10))
    assert result.index is not None
    assert (result.index["kind"], result.index["approximate"]) == ("ivf", True)
    assert "(eval.index=auto: 60 items; building it takes the work of ranking" in how_ranked(result.index)
    monkeypatch.undo()
    exact = evaluate(model, loaded, "test", EvalConfig())
    assert exact.index is not None
    assert how_ranked(exact.index) == "ranked exactly (eval.index=auto: 60 items, fewer than 100,000)"
    assert exact.rank.tolist() == evaluate(model, loaded, "test", EvalConfig(index="exact")).rank.tolist()
