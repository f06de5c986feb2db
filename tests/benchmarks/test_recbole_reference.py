"""Our parts of the RecBole reference: the rows that it trains on, and the ranks computed from its scores.

Training itself needs RecBole's own environment (benchmarks/README.md); these parts run everywhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from reference_ranks import RankRecorder, metrics, strict_ranks
from reference_rows import NAME, Sequences, read_sequences, write_atomic_files

# user 0 has 5 items and two training rows, user 1 has 3 items and none, user 2 has 4 items and one
SEQUENCES = [[1, 2, 3, 4, 5], [7, 1, 6], [2, 1, 3, 1]]


@pytest.fixture
def sequences(tmp_path: Path) -> Sequences:
    """The three users above, written and read as a prepared dataset with histories of at most 2 items."""
    (tmp_path / "sequences").mkdir()
    np.save(tmp_path / "sequences" / "offsets.npy", np.cumsum([0, *map(len, SEQUENCES)]))
    np.save(tmp_path / "sequences" / "items.npy", np.concatenate(SEQUENCES).astype(np.int32))
    manifest = {"users": 3, "items": 7, "train_rows": 3, "max_length": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return read_sequences(tmp_path)


def test_atomic_files_hold_every_prefix_and_leave_the_last_two_out(sequences: Sequences, tmp_path: Path) -> None:
    write_atomic_files(sequences, tmp_path / "recbole")
    rows = {
        s: (tmp_path / "recbole" / f"{NAME}.{s}.inter").read_text().splitlines() for s in ("train", "valid", "test")
    }
    assert rows["train"] == ["user_id:token\titem_id_list:token_seq\titem_id:token", "0\t1\t2", "0\t1 2\t3", "2\t2\t1"]
    assert rows["valid"][1:] == ["0\t2 3\t4", "1\t7\t1", "2\t2 1\t3"]
    assert rows["test"][1:] == ["0\t3 4\t5", "1\t7 1\t6", "2\t1 3\t1"]


def test_items_of_users_without_training_rows_are_cold(sequences: Sequences) -> None:
    assert np.flatnonzero(sequences.trained_items()).tolist() == [1, 2, 3]


def test_a_catalogue_that_recbole_would_not_see_whole_is_refused(sequences: Sequences, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**sequences.manifest, "items": 8}))
    with pytest.raises(SystemExit, match="1 items of the catalogue occur in no sequence"):
        read_sequences(tmp_path)


def test_ties_go_against_the_target() -> None:
    scores = torch.tensor([[-torch.inf, 0.5, 0.5, 0.1], [-torch.inf, 1.0, 1.0, 1.0]])
    assert strict_ranks(scores, torch.tensor([1, 3])).tolist() == [2, 3]


def test_masking_hides_the_whole_history_but_never_the_target(sequences: Sequences) -> None:
    recorder = RankRecorder(sequences, "test", np.arange(8))
    scores = torch.arange(8.0, 0.0, -1.0).repeat(3, 1)  # item 1 scores highest of the real items
    scores[:, 0] = -torch.inf
    recorder.add(scores[:2], torch.tensor([5, 6]))
    recorder.add(scores[2:], torch.tensor([1]))
    assert recorder.unmasked == [5, 6, 1]
    # user 0 has watched 1-4, user 1 has watched 7 and 1; the target of user 2 is item 1, watched before
    assert recorder.masked == [1, 5, 1]


def test_metrics_by_hand() -> None:
    found = metrics(np.array([1, 3, 11, 21]))
    assert found["HR@10"] == 0.5
    assert found["HR@20"] == 0.75
    assert found["NDCG@10"] == pytest.approx((1 + 0.5) / 4)
    assert found["NDCG@20"] == pytest.approx((1 + 0.5 + 1 / np.log2(12)) / 4)
