"""The bench for released code: our loop, resume and ranks around a small stand-in for a peer, and the table of parity.

The peers themselves need their code and an environment of their own (benchmarks/peers/README.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.errors import UserError
from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import parity
from peer import Job, Metrics, Peer, require_commit
from reference_rows import read_sequences
from train import options_of
from training import report, train

# user 0 has two training rows, user 1 has none, user 2 has one; item 6 is in no training row
SEQUENCES = [[1, 2, 3, 4, 5], [7, 1, 6], [2, 1, 3, 1]]


class Small(Peer):
    """Learns a score for each item, by random rows, as released code does. values: validations that `better` sees."""

    repository, commit = "somebody/small", "0" * 40
    patience, epochs = 2, 9

    def __init__(self, job: Job, values: tuple[float, ...] = ()) -> None:
        torch.manual_seed(job.seed)
        np.random.seed(job.seed)  # noqa: NPY002
        self.model: Any = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.9)
        self.settings, self._validations, self._values = {}, 0, values

    def train_epoch(self, epoch: int) -> float:  # noqa: ARG002
        assert self.model.training
        rows = torch.from_numpy(np.random.rand(3, 8)).float()  # noqa: NPY002
        loss = self.model(rows).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())

    def scores(self, split: str) -> Iterator[Tensor]:  # noqa: ARG002
        assert not self.model.training
        found = self.model(torch.eye(8)[:3]).clone()
        found[:, 0] = -torch.inf
        yield from found.split(2)

    def better(self, now: dict[str, Metrics], best: dict[str, Metrics] | None) -> bool:
        if not self._values:
            return best is None or now["unmasked"]["NDCG@20"] > best["unmasked"]["NDCG@20"]
        self._validations += 1
        return self._values[self._validations - 1] > 0

    def remember(self) -> int:
        return self._validations

    def recall(self, memory: int) -> None:
        self._validations = memory


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = tmp_path / "data"
    for folder in ("sequences", "table"):
        (data / folder).mkdir(parents=True)
    np.save(data / "sequences" / "offsets.npy", np.cumsum([0, *map(len, SEQUENCES)]))
    np.save(data / "sequences" / "items.npy", np.concatenate(SEQUENCES).astype(np.int32))
    np.save(data / "table" / "text.npy", np.ones((8, 2), np.float16))
    (data / "manifest.json").write_text(json.dumps({"users": 3, "items": 7, "train_rows": 3, "max_length": 2}))
    return Job(data, read_sequences(data), tmp_path, tmp_path, {}, 5, torch.device("cpu"))


def test_a_job_gives_what_a_peer_trains_on(job: Job) -> None:
    assert [each.tolist() for each in job.training_items()] == [[1, 2, 3], [7], [2, 1]]
    assert job.content("text").dtype == np.float32
    with pytest.raises(SystemExit, match="has no content 'visual'"):
        job.content("visual")


@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_that_was_stopped_ends_like_one_that_was_not(job: Job, tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    straight = Small(job)
    expected = train(straight, job, whole, 5)
    train(Small(job), job, parts, stop)
    resumed = Small(job)
    np.random.rand(99)  # noqa: NPY002  # what another process has drawn
    found = train(resumed, job, parts, 5)
    assert [each["loss"] for each in found["epochs"]] == [each["loss"] for each in expected["epochs"]]
    assert found["best_epoch"] == expected["best_epoch"]
    weights = zip(straight.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in weights)
    assert report(resumed, job, parts) == report(straight, job, whole)


def test_the_peers_own_rule_ends_a_training_and_names_the_epoch_to_keep(job: Job, tmp_path: Path) -> None:
    peer = Small(job, values=(1, 0, 1, 0, 0, 1))
    found = train(peer, job, tmp_path, peer.epochs)
    assert (found["epochs_run"], found["best_epoch"], found["stopped_early"]) == (5, 2, True)
    again = train(Small(job, values=(1,) * 9), job, tmp_path, peer.epochs)
    assert again["epochs_run"] == 5, "a training that has ended goes on"


def test_validations_every_second_epoch_are_what_patience_counts(job: Job, tmp_path: Path) -> None:
    peer = Small(job, values=(1, 0, 0))
    peer.every = 2
    found = train(peer, job, tmp_path, peer.epochs)
    assert [each["epoch"] for each in found["epochs"] if "valid" in each] == [1, 3, 5]
    assert found["epochs_run"] == 6


def test_ranks_are_written_as_our_runs_have_them(job: Job, tmp_path: Path) -> None:
    peer = Small(job)
    found = report(peer, job, tmp_path)
    with np.load(tmp_path / "ranks-test.npz") as file:
        arrays = dict(file)
    assert arrays["target"].tolist() == [5, 6, 1]
    assert arrays["cold"].tolist() == [True, True, False]
    with torch.no_grad():
        scores = torch.cat(list(peer.scores("test")))
    expected = [int((row[1:] >= row[target]).sum()) for row, target in zip(scores, [5, 6, 1], strict=True)]
    assert arrays["rank"].tolist() == expected
    assert found["test"]["unmasked_cold"]["users"] == 2


def test_settings_are_json_or_text() -> None:
    assert options_of(["lr=0.1", "name=dot", "widths=[4, 8]"]) == {"lr": 0.1, "name": "dot", "widths": [4, 8]}
    with pytest.raises(SystemExit, match="option=value"):
        options_of(["lr"])


def test_another_commit_of_the_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkout, and this bench was written for 0000"):
        require_commit(Small, tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(SystemExit, match=r"git clone .*somebody/small"):
        require_commit(Small, tmp_path)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    require_commit(type("Same", (Small,), {"commit": head}), tmp_path)


def write_ranks(folder: Path, ranks: list[int], target: int = 3) -> Path:
    folder.mkdir()
    many = np.array(ranks * 50)
    shared = {"user": np.arange(len(many)), "target": np.full(len(many), target), "cold": np.zeros(len(many), bool)}
    np.savez(folder / "ranks-test.npz", **shared, rank=many, rank_masked=np.maximum(many - 1, 1))
    hit = float((many <= 10).mean())
    (folder / "test.json").write_text(json.dumps({"HR@10": hit}))
    (folder / "metrics.json").write_text(json.dumps({"peer": {"name": "small"}}))
    (folder / "config.yaml").write_text("model: {name: sasrec}\n")
    return folder


def test_the_table_says_whether_ours_reaches_theirs(tmp_path: Path) -> None:
    theirs, ours, lower = (
        write_ranks(tmp_path / name, ranks)
        for name, ranks in (("theirs", [1, 3, 40, 90]), ("ours", [3, 1, 40, 90]), ("lower", [3, 9, 40, 90]))
    )
    unmasked, masked = parity.rows(theirs, ours)
    assert unmasked == "| small (sasrec) | .5000 | .3750 | .5000 | .3750 | +0.0000 ± 0.0251 | 1 | yes |"
    assert masked.startswith("| small (sasrec), masked | .5000 |")
    assert parity.rows(theirs, lower)[0].endswith("| no |")


def test_other_targets_and_an_unfinished_training_are_refused(tmp_path: Path) -> None:
    theirs, other = write_ranks(tmp_path / "theirs", [1, 2]), write_ranks(tmp_path / "other", [1, 2], target=4)
    with pytest.raises(UserError, match="they have other targets"):
        parity.rows(theirs, other)
    with pytest.raises(UserError, match="has not ended"):
        parity.rows(tmp_path, other)
