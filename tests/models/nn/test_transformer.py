"""SASRec's encoder against loops over rows, positions and heads; both memory layouts; the positions that one reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.contract import Batch
from models.nn.layout import Layout
from models.nn.transformer import LAYER_NORM_EPS, CausalEncoder, EncoderLayer
from models.options.sasrec import SASRecOptions
from models.sasrec import SASRec
from tests.helpers.model_fixtures import (
    HISTORIES,
    LENGTH,
    assert_same,
    attend,
    gelu,
    layer_norm,
    make_batch,
    model_context,
    randomise,
)

HIDDEN, HEADS = 6, 2


def _encoder(layers: int = 2) -> CausalEncoder:
    encoder = CausalEncoder(LENGTH, HIDDEN, 10, layers, HEADS, 0.5, 0.5).double().eval()
    randomise(encoder)
    return encoder


def _reference_row(encoder: CausalEncoder, tokens: list[Tensor]) -> Tensor:
    """Every position of every layer of one row's real tokens, by definition; the last position's state."""

    def norm(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
        return layer_norm(x, module.weight, module.bias, LAYER_NORM_EPS)

    states = [norm(token + encoder.position.weight[p], encoder.norm) for p, token in enumerate(tokens)]
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        part, after = layer.attention, []
        keys_values = [part.key_value.weight @ x + part.key_value.bias for x in states]
        keys, values = [kv[:HIDDEN] for kv in keys_values], [kv[HIDDEN:] for kv in keys_values]
        for p, x in enumerate(states):
            context = attend(part.query.weight @ x + part.query.bias, keys[: p + 1], values[: p + 1], HEADS)
            x = norm(x + part.out.weight @ context + part.out.bias, part.norm)
            inner = gelu(layer.inner.weight @ x + layer.inner.bias)
            after.append(norm(x + layer.outer.weight @ inner + layer.outer.bias, layer.norm))
        states = after
    return states[-1]


#: whether to leave all padding out, and how many tokens the host knows to be enough, more than there are
LAYOUTS = pytest.mark.parametrize(("pack", "spare"), [(True, None), (False, None), (False, 0), (False, 2)])


def _layout(batch: Batch, pack: bool, spare: int | None) -> Layout:
    return Layout.of(batch if spare is None else replace(batch, tokens=int(batch.length.sum()) + spare), pack)


@LAYOUTS
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_encoder_equals_loops_over_positions(pack: bool, spare: int | None, layers: int) -> None:
    encoder, batch = _encoder(layers), make_batch(HISTORIES)
    layout = _layout(batch, pack, spare)
    token_BLD = torch.randn(len(batch), LENGTH, HIDDEN, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([_reference_row(encoder, list(token_BLD[b, : len(h)])) for b, h in enumerate(HISTORIES)])
    actual = encoder(layout.flatten(token_BLD), layout)
    assert_same(actual, expected, [token_BLD, *encoder.parameters()], 1e-9)


@LAYOUTS
def test_padding_and_future_positions_are_never_read(pack: bool, spare: int | None) -> None:
    encoder, batch = _encoder(), make_batch(HISTORIES)
    layout = _layout(batch, pack, spare)
    token_BLD = torch.randn(len(batch), LENGTH, HIDDEN, dtype=torch.float64)
    padding = torch.arange(LENGTH) >= batch.length[:, None]
    other = torch.where(padding[:, :, None], 100.0, token_BLD)
    assert torch.equal(encoder(layout.flatten(token_BLD), layout), encoder(layout.flatten(other), layout))


def test_an_earlier_position_changes_the_state() -> None:
    """The mask lets the past through. Without this test, an encoder that reads one token could pass the one above."""
    encoder, batch = _encoder(), make_batch([[1, 2, 3, 5]])
    layout = Layout.of(batch, True)
    token_ND = torch.randn(LENGTH, HIDDEN, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(token_ND, layout).sum(), token_ND)
    assert (gradient.abs().sum(1) > 1e-6).all()


@LAYOUTS
def test_layout_keeps_tokens_positions_and_rows_together(pack: bool, spare: int | None) -> None:
    batch = make_batch(HISTORIES)
    layout = _layout(batch, pack, spare)
    flat, position, row = layout.flatten(batch.history).tolist(), layout.position().tolist(), layout.row().tolist()
    kept = {(r, p): item for r, p, item in zip(row, position, flat, strict=True)}
    wanted = {(r, p): item for r, h in enumerate(HISTORIES) for p, item in enumerate(h)}
    assert {place: item for place, item in kept.items() if item} == wanted
    assert len(kept) == (batch.history.numel() if not pack and spare is None else len(wanted) + (spare or 0))
    assert [flat[i] for i in layout.last.tolist()] == [h[-1] for h in HISTORIES]
    assert torch.equal(layout.pad(layout.flatten(batch.history)), batch.history)


def test_room_for_too_few_tokens_is_an_error_and_no_silent_loss() -> None:
    encoder, batch = _encoder(), make_batch(HISTORIES)
    layout = _layout(batch, False, -1)
    token_ND = torch.randn(len(batch) * LENGTH, HIDDEN, dtype=torch.float64)[: int(batch.length.sum()) - 1]
    with pytest.raises(IndexError):
        encoder(token_ND, layout)


def _sasrec() -> SASRec:
    model = SASRec(SASRecOptions(hidden=HIDDEN, inner=10), model_context()).double().eval()
    randomise(model)
    return model


def _encode_laid_out(model: SASRec, history: Tensor, layout: Layout) -> Tensor:
    return model.encoder(model.item_embedding(layout.flatten(history)), layout)  # type: ignore[no-any-return]


def test_sasrec_is_the_same_packed_and_padded() -> None:
    model, batch = _sasrec(), make_batch(HISTORIES)
    packed = _encode_laid_out(model, batch.history, Layout.of(batch, True))
    padded = _encode_laid_out(model, batch.history, Layout.of(batch, False))
    assert_same(packed, padded, list(model.parameters()))
    assert_same(model.encode(batch), padded)


def test_sasrec_loss_is_cross_entropy_of_dot_products() -> None:
    model, batch = _sasrec(), make_batch(HISTORIES)
    states = [_reference_row(model.encoder, list(model.item_embedding.weight[torch.tensor(h)])) for h in HISTORIES]
    logits = torch.stack(states) @ model.item_embedding.weight[1:].T
    losses = [torch.logsumexp(row, 0) - row[t - 1] for row, t in zip(logits, batch.target.tolist(), strict=True)]
    actual = model(batch)
    assert set(actual) == set(model.loss_weights) == {"ranking"}
    assert_same(actual["ranking"], torch.stack(losses).mean(), list(model.parameters()), 1e-9)


def test_a_prefix_gives_what_it_gives_alone_and_targets_are_not_read() -> None:
    model, batch = _sasrec(), make_batch([[1, 2, 3, 5], [1, 2, 3], [1]])
    vectors = model.user_vectors(batch)
    assert vectors.dtype == torch.float32
    for row, history in enumerate(([1, 2, 3, 5], [1, 2, 3], [1])):
        torch.testing.assert_close(model.user_vectors(make_batch([history]))[0], vectors[row])
    assert torch.equal(model.user_vectors(replace(batch, target=torch.zeros_like(batch.target))), vectors)
    assert torch.equal(model.item_vectors(), model.item_embedding.weight.float())


def test_order_of_the_history_matters() -> None:
    vectors = _sasrec().user_vectors(make_batch([[1, 2, 3], [2, 1, 3]]))
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_initial_weights_are_recboles() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecOptions(), model_context())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 2000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_dropout_works_in_training_only() -> None:
    model, batch = SASRec(SASRecOptions(), model_context()), make_batch(HISTORIES)
    assert not torch.equal(model.train().encode(batch), model.encode(batch))
    assert torch.equal(model.eval().encode(batch), model.encode(batch))
