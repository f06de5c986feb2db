"""A model of earlier data, evaluated on the targets of later data: what it would recommend if it stayed in service.

It knows the users and items of its own data. Items of a history that it does not know are passed over; a target that it
does not know, or a history without an item that it knows, is a miss (rank 0). It ranks exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.contract import Baseline, Batch, SequenceModel
from retrieval.exact import Histories, Ranks, exact_ranks, for_similarity, score_ranks
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import Split, target_positions
from trainer.data.known_rows import Ints, KnownRows
from trainer.evaluation.config import EvalConfig
from trainer.evaluation.evaluate import SCORES_AT_ONCE, Evaluation


@torch.no_grad()
def evaluate_earlier(
    model: SequenceModel | Baseline,
    known: KnownRows,
    dataset: Dataset,
    split: Split,
    config: EvalConfig,
    device: torch.device,
) -> Evaluation:
    """Rank the targets of `split` of the later `dataset` by `model`, which is in eval mode, on `device`.

    known: rows of `dataset` in the data of the model.
    """
    started = time.perf_counter()
    count, size = dataset.manifest.users, config.batch_size
    rank, masked = np.zeros(count, np.int64), np.zeros(count, np.int64)
    if isinstance(model, Baseline):
        size = min(size, max(1, SCORES_AT_ONCE // (1 + int(known.items.max()))))
    vectors = None if isinstance(model, Baseline) else for_similarity(model.item_vectors(), model.similarity)
    for asked in _questions(known, dataset, split, size):
        found = _rank(model, vectors, asked.batch.to(device), asked.histories)
        rank[asked.users], masked[asked.users] = (column.cpu().numpy() for column in found)
    return Evaluation(
        user=np.arange(count), target=dataset.items[target_positions(dataset.offsets, split)].astype(np.int64),
        rank=rank, rank_masked=masked, cold=dataset.cold_mask(split), seconds=time.perf_counter() - started,
        choice=config.choice,
    )  # fmt: skip


def _rank(model: SequenceModel | Baseline, items_ID: Tensor | None, batch: Batch, histories: Histories) -> Ranks:
    if isinstance(model, Baseline):
        return score_ranks(model.scores(batch), batch.target, histories)
    assert items_ID is not None
    users_BD = for_similarity(model.user_vectors(batch), model.similarity)
    return exact_ranks(users_BD, items_ID, batch.target, histories)


class _Question(NamedTuple):
    """Users whose target and some of whose history the model knows, in rows of its own data."""

    users: Ints
    batch: Batch
    histories: Histories


def _questions(known: KnownRows, dataset: Dataset, split: Split, size: int) -> Iterator[_Question]:
    targets = target_positions(dataset.offsets, split)
    for first in range(0, len(targets), size):
        block = range(first, min(first + size, len(targets)))
        rows = {user: _watched(known, dataset, user, int(targets[user])) for user in block}
        users = [user for user in block if len(rows[user][0]) and known.items[dataset.items[targets[user]]] >= 0]
        if users:
            wanted = known.items[dataset.items[targets[users]]]
            yield _Question(
                np.array(users), _batch([rows[user] for user in users], wanted, known.users[users], users, dataset),
                Histories.of([rows[user][0].tolist() for user in users]),
            )  # fmt: skip


def _watched(known: KnownRows, dataset: Dataset, user: int, target: int) -> tuple[Ints, Ints]:
    """Items before the target that the model knows, and their behaviours."""
    place = slice(int(dataset.offsets[user]), target)
    rows = known.items[dataset.items[place]]
    kept = rows >= 0
    shown = np.zeros(len(rows), np.int64) if dataset.behaviours is None else dataset.behaviours[place].astype(np.int64)
    return rows[kept], shown[kept]


def _batch(rows: list[tuple[Ints, Ints]], wanted: Ints, users: Ints, key: list[int], dataset: Dataset) -> Batch:
    """users: rows in the model's data, -1 for a user who is new. Noise is keyed by the user, as in any evaluation."""
    length = dataset.manifest.max_length
    history, behaviours = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.uint8)
    for place, (items, shown) in enumerate(rows):
        last = items[-length:]
        history[place, : len(last)], behaviours[place, : len(last)] = last, shown[-length:]
    return Batch(
        user=torch.from_numpy(users), history=torch.from_numpy(history),
        length=torch.tensor([min(len(items), length) for items, _ in rows]), target=torch.from_numpy(wanted),
        key=torch.tensor(key), behaviours=torch.from_numpy(behaviours),
    )  # fmt: skip
