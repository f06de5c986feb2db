"""Evaluations in which each worker has an index of its share of the items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import UserError
from retrieval.index import build
from retrieval.index.faiss_index import FaissIndex
from tests.helpers.tiny_runs import joined, run_ranks
from tests.helpers.untrained import opened
from trainer.evaluation import catalogue_index
from trainer.evaluation.catalogue_index import CatalogueIndex, Task
from trainer.evaluation.config import EvalConfig
from trainer.evaluation.evaluate import evaluate


def _rank(rank: int, world: int, data: str, out: str) -> None:
    built = list[int]()

    def noted(item_vectors: np.ndarray, *args: object, **kwargs: object) -> FaissIndex:
        built.append(len(item_vectors) - 1)
        return build.build_index(item_vectors, *args, **kwargs)  # type: ignore[arg-type]

    catalogue_index.build_index = noted  # type: ignore[assignment]
    with joined(rank, world, Path(out) / "store"):
        loaded, model = opened(Path(data), "sasrec")
        # 27, 27 and 26 users: three searches of two workers and two of the third
        config = EvalConfig(index="flat", sharded=True, batch_size=13, metrics=("HR", "Coverage"))
        result = evaluate(model, loaded, "test", config, with_lists=True)
        said = ""
        try:
            options = ("nprobe=9",)  # there are 20 items for each, too few for nine lists
            CatalogueIndex().of(
                np.ones((61, 4), np.float32),
                EvalConfig(index="ivf", sharded=True, index_options=options),
                Task(80, torch.device("cpu"), lambda: np.ones((3, 4), np.float32)),
            )
        except UserError as error:
            said = str(error)
        assert result.index is not None
        report = [built[0], result.rank.tolist(), result.rank_masked.tolist(), dict(result.lists), said]
        (Path(out) / f"{rank}.json").write_text(json.dumps([*report, result.index["recall@20"]]))


def test_shards_of_workers_rank_as_one_process_does_exactly(data: Path, tmp_path: Path) -> None:
    run_ranks(_rank, 3, str(data), str(tmp_path))
    loaded, model = opened(data, "sasrec")
    exact = evaluate(model, loaded, "test", EvalConfig(metrics=("HR", "Coverage")), with_lists=True)
    for rank in range(3):
        built, everything, masked, lists, said, recall = json.loads((tmp_path / f"{rank}.json").read_text())
        assert built == 20, "of 60 items"
        assert everything == exact.rank.tolist()
        assert masked == exact.rank_masked.tolist()
        assert lists == pytest.approx(dict(exact.lists))
        assert "nprobe is 9" in said
        assert recall == 1.0


def test_sharded_evaluations_have_a_fingerprint_of_their_own() -> None:
    """An approximate index in shards may find other items."""
    one, shards = EvalConfig(index="ivf"), EvalConfig(index="ivf", sharded=True)
    assert one.fingerprint(10**6, 10) != shards.fingerprint(10**6, 10)
    assert shards.may_be(shards.fingerprint(10**6, 10))
    assert not shards.may_be(one.fingerprint(10**6, 10))
