"""MMGCN learns: for users with three training items each, the graph helps, and so does the content of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.learning import make_world, train
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import target_positions

# for all seeds alike. HR@10, seeds 1, 2, 3 of world and run (2026-11-21): popularity .048, .051, .039; whole .108,
# .125, .118; without the graph .060, .065, .077; without content .088, .090, .089; without both .042, .042, .035
SETTINGS = ["train.epochs=20", "train.patience=20", "train.learning_rate=0.004", "train.batch_size=256",
            "model.hidden=32", "model.visual_width=32", "seed=1"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), mean_length=5.0, zipf=0.5, drift=0.1)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(data, tmp_path_factory.mktemp("runs") / "whole", "mmgcn", *SETTINGS)


def test_it_beats_popularity(data: Path, whole: dict[str, Any]) -> None:
    dataset = Dataset.open(data)
    counts = dataset.train_counts()
    targets = dataset.items[target_positions(dataset.offsets, "test")]
    rank = (counts[1:] >= counts[targets][:, None]).sum(1)
    assert whole["HR@10"] > 1.5 * np.mean(rank <= 10)


@pytest.mark.long
def test_the_graph_helps_sparse_users(data: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """Compared with the same parameters, but every node reads itself instead of its neighbours."""
    alone = train(data, tmp_path / "alone", "mmgcn", *SETTINGS, "model.graph=false")
    print(f"found: HR@10 {whole['HR@10']:.4f} with the graph, {alone['HR@10']:.4f} without")
    assert whole["HR@10"] > 1.3 * alone["HR@10"]
    assert whole["NDCG@10"] > 1.3 * alone["NDCG@10"]


@pytest.mark.long
def test_content_helps(data: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """Compared with learned vectors instead of content."""
    blind = train(data, tmp_path / "blind", "mmgcn", *SETTINGS, "model.content=false")
    print(f"found: HR@10 {whole['HR@10']:.4f} with content, {blind['HR@10']:.4f} without")
    assert whole["HR@10"] > 1.1 * blind["HR@10"]
    assert whole["NDCG@10"] > 1.1 * blind["NDCG@10"]
    # it does not find items without neighbours (docs/fidelity.md), like any system that only learns from graphs
    assert whole["cold"]["HR@10"] < whole["warm"]["HR@10"]
