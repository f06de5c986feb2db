"""In-batch debiased cross-entropy against a loop over every occurrence, in one process and over several workers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import Batch
from models.losses import softmax as loss_module
from models.losses.in_batch import BatchCandidates, InBatchSoftmax
from models.morec import MoRec
from models.options.morec import MoRecOptions
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    assert_same,
    interactions,
    make_batch,
    model_context,
    randomise,
)
from tests.helpers.tiny_runs import run_ranks
from trainer.batches.plan import Plan

WIDTH = 5
OPTIONS = MoRecOptions(hidden=6, depth=1, dropout=0.0)


def _share(item: int) -> float:
    """The share of the training interactions; an item without interactions counts as one."""
    seen = [i for history in HISTORIES for i in history]
    return max(seen.count(item), 1) / len(seen)


def _histories(batch: Batch) -> list[list[int]]:
    return [row[:n] for row, n in zip(batch.history.tolist(), batch.length.tolist(), strict=True)]


def _occurrences(batch: Batch) -> list[int]:
    """All items of the batch, including targets, as often as they occur."""
    return batch.target.tolist() + [item for history in _histories(batch) for item in history]


def _reference(user_BD: Tensor, item_ID: Tensor, batch: Batch) -> Tensor:
    """Row by row over all occurrences: without the row's own history, and with its own target once."""
    losses = []
    for user, target, history in zip(user_BD, batch.target.tolist(), _histories(batch), strict=True):
        others = [i for i in _occurrences(batch) if i not in history and i != target]
        scores = torch.stack([user @ item_ID[i] - torch.tensor(_share(i)).double().log() for i in [target, *others]])
        losses.append(-(scores[0] - torch.exp(scores).sum().log()))
    return torch.stack(losses).mean()


def _vectors(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    user, item = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (rows, ITEMS))
    return user.requires_grad_(), item.requires_grad_()


def _loss(user_BD: Tensor, item_ID: Tensor, batch: Batch) -> Tensor:
    softmax = InBatchSoftmax(interactions(), ITEMS).double()
    candidates = softmax.candidates(batch)
    loss: Tensor = softmax(user_BD, item_ID[candidates.row], candidates, batch)
    return loss


def _check(batch: Batch) -> None:
    user, item = _vectors(len(batch))
    # the shares are stored in float32
    assert_same(_loss(user, item, batch), _reference(user, item, batch), [user, item], 1e-6)


def test_loss_and_gradients_equal_the_loop_over_occurrences() -> None:
    batch = make_batch(HISTORIES)
    occurrences = _occurrences(batch)
    assert len(set(occurrences)) < len(occurrences), "some items occur more than once"
    _check(batch)


def test_a_target_out_of_its_own_history_is_a_candidate() -> None:
    batch = make_batch([[7, 2], [3, 7, 7], [7]])
    _check(replace(batch, target=torch.tensor([2, 7, 7])))


def test_one_row_of_one_item_has_nothing_to_learn_but_its_target() -> None:
    batch = make_batch([[3]])
    user, item = _vectors(1)
    assert float(_loss(user, item, batch).detach()) == 0


def test_rows_of_full_length_have_no_padding() -> None:
    batch = make_batch([[1, 2], [3, 4], [2, 9]], length=2)
    assert batch.history.all()
    _check(batch)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, ITEMS - 1), min_size=1, max_size=4), min_size=1, max_size=6))
def test_any_histories_equal_the_loop(histories: list[list[int]]) -> None:
    _check(make_batch(histories))


def test_slices_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_SLICE_ROWS", 2)
    monkeypatch.setattr(loss_module, "_SLICE_BYTES_CPU", 1)
    _check(make_batch([*HISTORIES, [2, 8]]))


def test_candidates_are_the_distinct_items_and_their_counts() -> None:
    batch = make_batch(HISTORIES)
    candidates = InBatchSoftmax(interactions(), ITEMS).candidates(batch)
    occurrences = _occurrences(batch)
    assert candidates.row.tolist() == sorted({0, *occurrences})
    assert candidates.count.tolist() == [occurrences.count(item) for item in candidates.row.tolist()]
    assert candidates.row[candidates.place(batch.history)].equal(batch.history)


def test_padding_is_never_compared_with() -> None:
    batch = make_batch(HISTORIES)
    user, item = _vectors(len(batch))
    loss = _loss(user, item, batch)
    (gradient,) = torch.autograd.grad(loss, item)
    assert not gradient[0].any()
    assert gradient[batch.target].any()
    with torch.no_grad():
        item[0] = 1e3
    assert torch.equal(_loss(user, item, batch), loss)


def test_half_precision_keeps_the_corrections() -> None:
    batch = make_batch(HISTORIES)
    user, item = (x.detach().float() for x in _vectors(len(batch)))
    with torch.autocast("cpu", torch.bfloat16):
        softmax = InBatchSoftmax(interactions(), ITEMS)
        candidates: BatchCandidates = softmax.candidates(batch)
        loss = softmax(user, item[candidates.row], candidates, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _reference(user.double(), item.double(), batch).float(), rtol=0.02, atol=0.0)


def _model() -> MoRec:
    model = MoRec(OPTIONS, model_context())
    model.double().train()
    randomise(model)
    return model


#: five rows, which give uneven shares, then two, which leave the third worker without rows
ROWS = [*HISTORIES, [2, 8]]
PLAN = Plan(len(ROWS), 5)


def _rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(str(folder / "store"), world)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    model, batch, found = _model(), make_batch(ROWS), {}
    for step in range(PLAN.steps):
        ((rows, weight),) = PLAN.share(step, rank, world, 1)
        total = weight * model(batch[torch.from_numpy(rows)])["ranking"]
        found[f"{step}.loss"] = total.detach()
        found[f"{step}.gradient"] = _gradients(model, total)
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def _gradients(model: MoRec, total: Tensor) -> Tensor:
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("world", [2, 3])
def test_workers_together_have_the_loss_and_gradients_of_one(world: int, tmp_path: Path) -> None:
    run_ranks(_rank, world, tmp_path)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(world)]
    model, batch = _model(), make_batch(ROWS)
    for step in range(PLAN.steps):
        loss = model(batch[torch.from_numpy(PLAN.positions(step))])["ranking"]
        expected = {"loss": loss.detach(), "gradient": _gradients(model, loss)}
        assert expected["gradient"].any()
        for name, value in expected.items():
            total = torch.stack([found[f"{step}.{name}"] for found in ranks]).sum(0)
            torch.testing.assert_close(total, value, rtol=1e-11, atol=1e-11)
