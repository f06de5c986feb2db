"""MoRec: items layer by layer in float64, users from item vectors; evaluation encodes every item only once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import content_model
from models.errors import UserError
from models.morec import FeatureEncoder, MoRec
from models.nn.layout import Layout
from models.options.base import ContentField
from models.options.morec import MoRecOptions
from models.systems import build
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    MISSING,
    assert_same,
    gelu,
    item_table,
    make_batch,
    model_context,
    randomise,
)

OPTIONS = MoRecOptions(hidden=6)


def _morec(options: MoRecOptions = OPTIONS) -> MoRec:
    model = MoRec(options, model_context())
    model.double().eval()
    randomise(model)
    return model


def _feature(encoder: FeatureEncoder, item: int) -> Tensor:
    """All layers, each linear with GELU, over an item's content or the vector for missing content."""
    x = encoder.content.table.gather(encoder.content.field, torch.tensor(item)).double()
    if item == MISSING:
        assert encoder.content.missing is not None
        x = x + encoder.content.missing
    for layer in encoder.network:
        if isinstance(layer, nn.Linear):
            x = gelu(layer.weight @ x + layer.bias)
    return x


def _item(model: MoRec, item: int) -> Tensor:
    encoders = [encoder for encoder in model.modalities if isinstance(encoder, FeatureEncoder)]
    assert len(encoders) == len(model.modalities)
    return torch.stack([_feature(encoder, item) for encoder in encoders]).sum(0)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("visual", [False, True])
def test_items_equal_their_modalities_layer_by_layer(depth: int, visual: bool) -> None:
    model = _morec(replace(OPTIONS, depth=depth, visual=visual))
    rows = torch.arange(1, ITEMS)
    expected = torch.stack([_item(model, item) for item in rows.tolist()])
    leaves = list(model.modalities.parameters())
    assert len(leaves) == (1 + visual) * (2 * (depth + 1) + 1)
    assert_same(model.encode_items(rows), expected, leaves)


@pytest.mark.parametrize("pack", [True, False])
def test_users_are_the_shared_encoder_over_their_items(monkeypatch: pytest.MonkeyPatch, pack: bool) -> None:
    """`pack` False: batches keep their padding, as on a GPU."""
    model, batch = _morec(), make_batch(HISTORIES)
    of = Layout.of
    tokens = torch.stack([_item(model, i) for history in HISTORIES for i in history])
    real = (batch.history != 0).flatten().nonzero().squeeze(1)
    dense = torch.zeros(batch.history.numel(), OPTIONS.hidden, dtype=torch.float64).index_copy(0, real, tokens)
    layout = of(batch, True)
    expected = model.encoder(layout.flatten(dense.view(*batch.history.shape, -1)), layout)
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))
    place_BL = batch.history  # in the matrix of all item vectors, every item is at its row
    items = model.encode_items(torch.arange(ITEMS))
    assert_same(model._encode(batch, items, place_BL), expected, list(model.parameters()), 1e-9)


def test_the_loss_compares_users_and_items_by_content_alone() -> None:
    model, batch = _morec(), make_batch(HISTORIES)
    candidates = model.in_batch.candidates(batch)
    items = model.encode_items(torch.arange(ITEMS))
    users = model._encode(batch, items, batch.history)
    expected = model.in_batch(users, items[candidates.row], candidates, batch)
    actual = model(batch)
    assert set(actual) == set(model.loss_weights) == {"ranking"}
    assert_same(actual["ranking"], expected, list(model.parameters()), 1e-9)


def test_every_parameter_learns_also_in_half_precision() -> None:
    for half in (False, True):
        model = MoRec(OPTIONS, model_context()).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(make_batch(HISTORIES))["ranking"]
        loss.backward()
        assert loss.dtype == torch.float32
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("used", [("text",), ("visual",), ("text", "visual")])
def test_items_are_known_by_title_video_or_both(used: tuple[ContentField, ...]) -> None:
    options = replace(OPTIONS, text="text" in used, visual="visual" in used)
    model = MoRec(options, model_context(table=item_table(fields=used)))
    assert options.needs == used
    assert [encoder.content.field for encoder in model.modalities if isinstance(encoder, FeatureEncoder)] == list(used)
    for field in used:
        rest: list[ContentField] = [other for other in ("text", "visual", "sequence") if other != field]
        with pytest.raises(UserError, match=rf"morec needs item content .* {field}: prepare it with"):
            build("morec", options, model_context(table=item_table(fields=rest)))


def test_user_vectors_depend_on_neither_batch_nor_target_nor_what_is_cached() -> None:
    model, batch = _morec(), make_batch(HISTORIES)
    with torch.no_grad():
        vectors = model.user_vectors(batch)
        for row in range(len(batch)):
            torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
        unknown = replace(batch, target=batch.target * 0, user=batch.user * 0 - 1)
        assert torch.equal(model.user_vectors(unknown), vectors)
        assert model.cached_value() is None, "one request does not encode the whole catalogue"
        model.item_vectors()
        assert model.cached_value() is not None
        torch.testing.assert_close(model.user_vectors(batch), vectors)


def test_an_evaluation_encodes_every_item_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_model, "_BLOCK", 5)
    model, batch = _morec(), make_batch(HISTORIES)
    encode = model.encode_items
    asked: list[list[int]] = []

    def noted(rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return encode(rows)

    monkeypatch.setattr(model, "encode_items", noted)
    with torch.no_grad():
        items = model.item_vectors()
        model.user_vectors(batch)
        model.item_vectors()
        assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
        torch.testing.assert_close(items, encode(torch.arange(ITEMS)).float())
        next(model.modalities.parameters()).add_(1.0)
        assert not torch.equal(model.item_vectors(), items)


@pytest.mark.parametrize(("name", "value"), [("heads", 5), ("depth", -1), ("dropout", 1.0), ("layers", 0)])
def test_bad_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        MoRecOptions(**{name: value})  # type: ignore[arg-type]


def test_items_without_any_content_are_refused() -> None:
    with pytest.raises(UserError, match="text is False: it must be true if visual is false"):
        MoRecOptions(text=False, visual=False)
