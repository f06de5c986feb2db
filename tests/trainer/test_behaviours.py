"""Behaviours end to end: a shortvideo CSV is prepared and loaded in every way, and compared with loops over the CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.contract import Batch
from trainer.batches.loader import Loaded, load
from trainer.cli import main
from trainer.data.format import shards
from trainer.data.format.dataset import Dataset
from trainer.data.sources.shortvideo import SHORTVIDEO_BEHAVIOURS

MAX_LENGTH = 4
CPU = torch.device("cpu")
Entry = tuple[str, frozenset[str]]  # an item and the behaviours for it


def _write_log(path: Path) -> None:
    """30 users with 3 to 12 interactions with 15 items, in random order; each behaviour is drawn independently."""
    rng = np.random.default_rng(4)
    rows = [
        [f"u{user}", f"p{rng.integers(15)}", 1000 + 7 * step, *rng.integers(2, size=len(SHORTVIDEO_BEHAVIOURS))]
        for user in range(30)
        for step in range(rng.integers(3, 13))
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "pid", "exposed_time", *SHORTVIDEO_BEHAVIOURS])
        writer.writerows(rows[at] for at in rng.permutation(len(rows)))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("behaviours") / "interaction.csv"
    _write_log(path)
    return path


@pytest.fixture(scope="module")
def dataset(log: Path) -> Iterator[Dataset]:
    with pytest.MonkeyPatch.context() as patch:  # several small shards
        patch.setattr(shards, "BLOCK_ROWS", 8)
        patch.setattr(shards, "BLOCKS_PER_SHARD", 2)
        command = ["prepare", "shortvideo", "--interactions", str(log), "--core-on", "none", "--out"]
        assert main([*command, str(log.parent / "data"), "--max-length", str(MAX_LENGTH)]) == 0
        yield Dataset.open(log.parent / "data")


def _raw(log: Path) -> dict[str, list[Entry]]:
    """Every user's interactions, oldest first, by a loop over the CSV."""
    lines = list(csv.DictReader(log.open(newline="")))
    users: dict[str, list[Entry]] = {}
    for line in sorted(lines, key=lambda line: int(line["exposed_time"])):
        shown = frozenset(name for name in SHORTVIDEO_BEHAVIOURS if line[name] == "1")
        users.setdefault(line["user_id"], []).append((line["pid"], shown))
    return users


def _named(dataset: Dataset, batch: Batch) -> list[tuple[str, tuple[Entry, ...], str]]:
    """User, history with behaviours, and target of every row, with the ids of the CSV."""
    users, items, names = dataset.user_ids(), dataset.item_ids(), dataset.manifest.behaviours
    assert batch.behaviours.dtype == torch.uint8
    rows = []
    for user, history, bits, length, target in zip(
        *(x.tolist() for x in (batch.user, batch.history, batch.behaviours, batch.length, batch.target)), strict=True
    ):
        assert len(bits) == MAX_LENGTH
        assert not any(bits[length:]), "padding shows nothing"
        entries = tuple(
            (items[i - 1], frozenset(name for n, name in enumerate(names) if b >> n & 1))
            for i, b in zip(history[:length], bits[:length], strict=True)
        )
        rows.append((users[user], entries, items[target - 1]))
    return rows


def _load(dataset: Dataset, loader: str) -> Loaded:
    return load(dataset, CPU, seed=3, loader=loader, window=2)


def test_the_manifest_names_behaviours_in_bit_order(dataset: Dataset) -> None:
    assert dataset.manifest.behaviours == SHORTVIDEO_BEHAVIOURS


@pytest.mark.parametrize("loader", ["resident", "mmap", "stream"])
def test_training_rows_carry_the_behaviours_of_the_log(log: Path, dataset: Dataset, loader: str) -> None:
    expected = Counter(
        (user, tuple(entries[:place][-MAX_LENGTH:]), entries[place][0])
        for user, entries in _raw(log).items()
        for place in range(1, len(entries) - 2)
    )
    assert any(len(entries) > MAX_LENGTH + 3 for entries in _raw(log).values()), "some histories are cut"
    source = _load(dataset, loader).training_rows
    for epoch in (1, 2):
        got = Counter(
            row
            for start in range(0, source.count, 30)
            for row in _named(dataset, source.batch(epoch, np.arange(start, min(start + 30, source.count))))
        )
        assert got == expected


@pytest.mark.parametrize("loader", ["resident", "mmap", "stream"])
def test_evaluation_rows_carry_the_behaviours_of_the_log(log: Path, dataset: Dataset, loader: str) -> None:
    loaded, raw = _load(dataset, loader), _raw(log)
    for split, place in (("validation", -2), ("test", -1)):
        everyone = np.arange(dataset.manifest.users)
        batches = loaded.evaluation_batches(split, everyone, 7)  # type: ignore[arg-type]
        got = {row[0]: row[1:] for batch in batches for row in _named(dataset, batch)}
        wanted = {u: (tuple(entries[:place][-MAX_LENGTH:]), entries[place][0]) for u, entries in raw.items()}
        assert got == wanted


def test_a_log_without_behaviours_gives_zeros(tmp_path: Path, log: Path) -> None:
    lines = [",".join(line.split(",")[:3]) for line in log.read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("\n".join(lines) + "\n")
    command = ["prepare", "shortvideo", "--interactions", str(tmp_path / "plain.csv"), "--core-on", "none", "--out"]
    assert main([*command, str(tmp_path / "data")]) == 0
    dataset = Dataset.open(tmp_path / "data")
    assert (dataset.manifest.behaviours, dataset.behaviours) == ((), None)
    for loader in ("resident", "stream"):
        batch = _load(dataset, loader).training_rows.batch(1, np.arange(5))
        assert (batch.behaviours.shape, batch.behaviours.dtype) == (batch.history.shape, torch.uint8)
        assert not batch.behaviours.any()
