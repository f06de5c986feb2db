"""The whole SSDRec: its losses and draws, and the properties of user vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.contract import Batch, Clock
from models.errors import UserError
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.options.sasrec import SASRecOptions
from models.options.ssdrec import SSDRecOptions
from models.sasrec import SASRec
from models.ssdrec.denoise import filter_loss
from models.ssdrec.model import SSDRec
from models.ssdrec.relations import ItemRelations
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    LENGTH,
    interactions,
    make_batch,
    model_context,
    randomise,
)
from tests.models.ssdrec.test_graphs import HIDDEN, compressed

SMALL = SSDRecOptions(
    hidden=HIDDEN, inner=8, attention_dropout=0.0, hidden_dropout=0.0, dropout=0.0, strong=0, neighbours=50
)


def _model(options: SSDRecOptions = SMALL, make: Callable[[SSDRec], SSDRec] = SSDRec.eval) -> SSDRec:
    model = make(SSDRec(options, model_context()).double())
    randomise(model)
    return model


def test_the_encoder_reads_what_is_left_of_each_history() -> None:
    """Drop items by both levels without noise; the remaining items are encoded like any history."""
    model, batch = _model(), make_batch(HISTORIES)
    assert model.denoising is not None
    item = model.item_relations(model.item_embedding.weight, model.user_embedding.weight)
    user = model.user_relations(batch.user, model.user_embedding.weight, model.item_embedding.weight)
    vector = item[batch.history] + (user / batch.length[:, None])[:, None]
    keep, _ = model.denoising(
        model.item_embedding(batch.history), vector, model.user_embedding(batch.user), batch.length, None, 0.5
    )
    left = [[i for i, k in zip(h, row.tolist(), strict=False) if k] for h, row in zip(HISTORIES, keep, strict=True)]
    assert sum(map(len, left)) < sum(map(len, HISTORIES))
    denoised = make_batch(left, length=LENGTH)
    layout = Layout.of(denoised)
    expected = model.encoder(model.item_embedding(layout.flatten(denoised.history)), layout)
    torch.testing.assert_close(model.encode(batch), expected)


def test_without_both_stages_it_is_sasrec() -> None:
    model = _model(replace(SMALL, augment=False, denoise=False))
    sasrec = SASRec(SASRecOptions(hidden=HIDDEN, inner=8), model_context()).double().eval()
    sasrec.load_state_dict(model.state_dict())
    batch = make_batch(HISTORIES)
    assert torch.equal(model.user_vectors(batch), sasrec.user_vectors(batch))
    gradients = []
    for system in (model, sasrec):
        system(batch)["ranking"].backward()
        gradients.append(system.item_embedding.weight.grad)
    assert torch.equal(*gradients)
    assert set(model.loss_weights) == {"ranking"}


def test_losses_are_of_the_rows_that_the_curriculum_leaves_in() -> None:
    model, batch = _model(), make_batch(HISTORIES)
    terms = {epoch: _terms(model, batch, Clock(epoch)) for epoch in (1, 10)}
    assert set(terms[1]) == set(model.loss_weights)
    alone = [_terms(model, batch[row : row + 1], Clock(10)) for row in range(len(batch))]
    for name in ("ranking", "reconstruction", "filter"):
        torch.testing.assert_close(terms[10][name], torch.stack([t[name] for t in alone]).mean())
    easy = sorted(alone, key=lambda t: t["reconstruction"].item())[: int(0.8 * len(alone))]
    for name in ("ranking", "reconstruction"):
        torch.testing.assert_close(terms[1][name], torch.stack([t[name] for t in easy]).mean())


def _terms(model: SSDRec, batch: Batch, clock: Clock) -> dict[str, Tensor]:
    model.clock = clock
    return model(batch)


def test_draws_depend_on_the_key_alone() -> None:
    model, batch = _model(make=SSDRec.train), make_batch(HISTORIES)
    model.clock = Clock(10)
    alone = [model(batch[row : row + 1]) for row in range(len(batch))]
    for name, value in model(batch).items():
        torch.testing.assert_close(value, torch.stack([terms[name] for terms in alone]).mean())
    other = model(replace(batch, key=batch.key + 1))
    assert other["ranking"] != model(batch)["ranking"]


def test_negatives_are_items_keyed_by_row() -> None:
    model, batch = _model(), make_batch(HISTORIES)
    negative = KeyedNoise(3).integers(batch.key, 1, ITEMS - 1, Stream.NEGATIVES)
    expected = filter_loss(
        model.item_embedding(batch.history), model.user_embedding(batch.user), model.item_embedding(negative),
        batch.length, torch.ones(len(batch), dtype=torch.bool), 0.2,
    )  # fmt: skip
    torch.testing.assert_close(_terms(model, batch, Clock(20))["filter"], expected)


def test_every_parameter_learns() -> None:
    model, total = _model(make=SSDRec.train), torch.zeros(())
    for key in range(20):
        batch = make_batch([h[:2] for h in HISTORIES], LENGTH, first_key=1000 * key)
        total = total + sum(model(batch).values())
    total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_user_vectors_depend_on_neither_batch_nor_target() -> None:
    model, batch = _model(), make_batch(HISTORIES)
    vectors = model.user_vectors(batch)
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0].double(), vectors[row].double())
    assert torch.equal(model.user_vectors(replace(batch, target=batch.target * 0, key=batch.key + 5)), vectors)


def test_somebody_unknown_and_graphs_once_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = _model(), make_batch(HISTORIES)
    unknown = replace(batch, user=torch.full_like(batch.user, -1))
    calls: list[int] = []
    propagate = ItemRelations.forward
    monkeypatch.setattr(ItemRelations, "forward", lambda *args: calls.append(1) or propagate(*args))  # type: ignore[func-returns-value]
    with torch.no_grad():
        vectors = model.user_vectors(unknown)
        model.user_embedding.weight[0] = 9.0  # an unknown user must not be treated as user 0
        changed = model.user_vectors(unknown)
        calls.clear()
        model.user_vectors(batch)
        model.user_vectors(batch)
    assert torch.isfinite(vectors).all()
    assert changed.shape == vectors.shape
    assert calls == []
    assert float(_terms(model, unknown, Clock(1))["filter"].detach()) == 0.0


def test_the_padding_row_of_the_item_table_is_never_read() -> None:
    model, batch = _model(make=SSDRec.train), make_batch(HISTORIES)
    before = model(batch)
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    for name, value in model(batch).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("change", [{"augment": False}, {"denoise": False}])
def test_each_stage_can_be_left_out(change: dict[str, bool]) -> None:
    model, batch = _model(replace(SMALL, **change), SSDRec.train), make_batch(HISTORIES)
    terms = model(batch)
    assert set(terms) == set(model.loss_weights)
    assert torch.isfinite(torch.stack(list(terms.values()))).all()
    if "augment" in change:
        twice = model(replace(batch, key=batch.key))["reconstruction"]
        torch.testing.assert_close(twice, terms["reconstruction"])


def test_it_trains_in_bfloat16() -> None:
    model, batch = SSDRec(SMALL, model_context()).train(), make_batch(HISTORIES)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model(batch)
    torch.stack([t.float() for t in terms.values()]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_one_user_of_one_item_and_the_shortest_catalogue() -> None:
    context = replace(model_context(), interactions=compressed([[1]]), max_length=1)
    model = SSDRec(SMALL, context).train()
    assert torch.isfinite(torch.stack(list(model(make_batch([[1]], 1)).values()))).all()
    assert interactions().offsets[-1] > 0


@pytest.mark.parametrize(
    "wrong", [{"neighbours": 0}, {"strong": -1}, {"tau_least": 0.0}, {"tau": 0.0001}, {"dropout": 1.0}, {"heads": 3}]
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SSDRecOptions(**wrong)  # type: ignore[arg-type]
