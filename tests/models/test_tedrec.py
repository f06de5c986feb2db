"""TedRec: the text adaptor expert by expert, the fusion as explicit circular convolution, and the whole encoder."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.options.tedrec import TedRecOptions
from models.tedrec import FrequencyFusion, TedRec, TextAdaptor
from tests.helpers.model_fixtures import HISTORIES, LENGTH, TEXT, assert_same, make_batch, model_context, randomise

HIDDEN, EXPERTS = 6, 3
OPTIONS = TedRecOptions(hidden=HIDDEN, inner=8, experts=EXPERTS)


def _adaptor(dropout: float = 0.0) -> TextAdaptor:
    adaptor = TextAdaptor(TEXT, HIDDEN, LENGTH, EXPERTS, dropout).double()
    randomise(adaptor)
    return adaptor


def _experts_one_by_one(adaptor: TextAdaptor, text: Tensor, position: Tensor, noise: Tensor | None) -> Tensor:
    """sum over e of g_e W_e (x - b_e), g the softmax of x W_g + noise (softplus(x W_n) + .01)."""
    out = []
    for n, (x, p) in enumerate(zip(text, position.tolist(), strict=True)):
        logits = []
        for e in range(EXPERTS):
            logit = x @ adaptor.gate[:, e]
            if noise is not None:
                logit = logit + noise[n, e] * (torch.log1p(torch.exp(x @ adaptor.gate_noise[:, e])) + 0.01)
            logits.append(torch.exp(logit))
        parts = [logits[e] / sum(logits) * ((x - adaptor.shift[p, e]) @ adaptor.experts[e]) for e in range(EXPERTS)]
        out.append(torch.stack(parts).sum(0))
    return torch.stack(out)


@pytest.mark.parametrize("noisy", [False, True])
def test_adaptor_equals_its_experts_one_by_one(noisy: bool) -> None:
    adaptor = _adaptor()
    text = torch.randn(9, TEXT, dtype=torch.float64, requires_grad=True)
    position = torch.arange(9) % LENGTH
    noise = torch.randn(9, EXPERTS, dtype=torch.float64) if noisy else None
    expected = _experts_one_by_one(adaptor, text, position, noise)
    assert_same(adaptor(text, position, noise), expected, [text, *adaptor.parameters()], 1e-9)


def test_adaptor_dropout_is_unbiased_on_the_text_and_spares_the_shift() -> None:
    torch.manual_seed(0)
    adaptor, draws = _adaptor(dropout=0.2), 20_000
    text, position = torch.randn(1, TEXT, dtype=torch.float64), torch.zeros(draws, dtype=torch.int64)
    adaptor.train()
    with torch.no_grad():
        values = adaptor(text.expand(draws, -1), position, None)
        expected = adaptor.eval()(text, position[:1], None)[0]
    error = values.std(0) / math.sqrt(draws)
    assert (error > 0).all()
    assert ((values.mean(0) - expected).abs() < 5 * error).all()


def _convolve(one: list[Tensor], two: list[Tensor]) -> list[Tensor]:
    """Circular convolution of two sequences of vectors, element by element."""
    n = len(one)
    return [torch.stack([one[j] * two[(i - j) % n] for j in range(n)]).sum(0) for i in range(n)]


def _kernel(fusion: FrequencyFusion, length: int) -> list[Tensor]:
    """The learned filter in time: inverse transform of the half spectrum, its mirror image written out."""
    half = length // 2 + 1
    real, imaginary = fusion.filter[0, :, :, 0], fusion.filter[0, :, :, 1]
    taps = []
    for n in range(length):
        total = torch.zeros_like(real[0])
        for k in range(length):
            turn = cmath.exp(2j * math.pi * k * n / length)
            own = k if k < half else length - k  # a real signal's spectrum at L - k is the conjugate of that at k
            sign = 0 if own in (0, length / 2) else (1 if k < half else -1)
            total = total + real[own] * turn.real - sign * imaginary[own] * turn.imag
        taps.append(total / length)
    return taps


@pytest.mark.parametrize("length", [1, 2, 4, 5, 10])
def test_fusion_equals_circular_convolutions(length: int) -> None:
    fusion = FrequencyFusion(length, HIDDEN).double()
    randomise(fusion)
    item, text = (torch.randn(2, length, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rows = []
    for b in range(2):
        filtered = _convolve(list(item[b]), _kernel(fusion, length))
        fused = [x / math.sqrt(length) for x in _convolve(list(item[b]), list(text[b]))]  # orthonormal transforms
        gates = [
            [torch.sigmoid(x @ gate.weight[0] + gate.bias[0]) for x in sequence]
            for sequence, gate in ((filtered, fusion.item_gate), (fused, fusion.fuse_gate))
        ]
        rows.append(torch.stack([2 * (filtered[i] * gates[0][i] + fused[i] * gates[1][i]) for i in range(length)]))
    # the transform is stored in float32
    assert_same(fusion(item, text), torch.stack(rows), [item, text, *fusion.parameters()], 1e-5)


def test_fusion_is_float32_under_autocast() -> None:
    """Half-precision transforms need power-of-two lengths on CUDA and lose the sum over positions."""
    fusion = FrequencyFusion(10, HIDDEN)
    item, text = torch.randn(2, 3, 10, HIDDEN)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = fusion(item, text)
        from_half = fusion(item.bfloat16(), text.bfloat16())
    assert autocast.dtype == from_half.dtype == torch.float32
    assert torch.equal(autocast, fusion(item, text))


def _tedrec() -> TedRec:
    model = TedRec(OPTIONS, model_context()).double().eval()
    randomise(model)
    return model


def _reference_encode(model: TedRec, histories: list[list[int]], noise: Tensor | None) -> list[Tensor]:
    """Fused tokens of each row, from the parts tested above; padding is zero before and after the transform."""
    rows = []
    for b, history in enumerate(histories):
        item = torch.zeros(1, LENGTH, HIDDEN, dtype=torch.float64)
        text = torch.zeros(1, LENGTH, HIDDEN, dtype=torch.float64)
        for p, i in enumerate(history):
            here = None if noise is None else noise[b, p, None].double()
            content = model.text(torch.tensor([i]))
            item[0, p] = model.item_embedding.weight[i]
            text[0, p] = _experts_one_by_one(model.adaptor, content, torch.tensor([p]), here)[0]
        rows.append(model.fusion(item, text)[0, : len(history)])
    return rows


def _check_encode(model: TedRec, noise: Tensor | None) -> None:
    batch = make_batch(HISTORIES)
    fused = torch.nn.utils.rnn.pad_sequence(_reference_encode(model, HISTORIES, noise), batch_first=True)
    fused = torch.nn.functional.pad(fused, (0, 0, 0, batch.history.shape[1] - fused.shape[1]))
    layout = Layout.of(batch, True)
    expected = model.encoder(layout.flatten(fused), layout)
    assert_same(model.encode(batch), expected, list(model.parameters()), 1e-9)


def test_encode_packed_equals_row_by_row_with_zero_padding() -> None:
    _check_encode(_tedrec(), None)


@pytest.mark.usefixtures("padded_layout")
def test_encode_padded_equals_row_by_row_with_zero_padding() -> None:
    _check_encode(_tedrec(), None)


def test_training_gates_draw_noise_by_row_key() -> None:
    options = replace(OPTIONS, adaptor_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0)
    model = TedRec(options, model_context(seed=8)).double().train()
    randomise(model)
    noise = KeyedNoise(8).normal(make_batch(HISTORIES).key, (LENGTH, EXPERTS), Stream.GATE_NOISE)
    _check_encode(model, noise)


def _padding_row_changes_nothing() -> bool:
    model, batch = _tedrec(), make_batch(HISTORIES)
    before = model.encode(batch)
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    return torch.equal(model.encode(batch), before)


def test_the_padding_row_of_the_item_table_is_never_read() -> None:
    assert _padding_row_changes_nothing()


@pytest.mark.usefixtures("padded_layout")
def test_the_padding_row_of_the_item_table_is_never_read_when_padding_is_kept() -> None:
    assert _padding_row_changes_nothing()


def test_loss_is_cross_entropy_of_cosines_over_temperature() -> None:
    model, batch = _tedrec(), make_batch(HISTORIES)
    user, item = model.encode(batch), model.item_embedding.weight[1:]
    cosine = torch.stack([torch.stack([u @ i / (u.norm() * i.norm()) for i in item]) for u in user]) / 0.07
    picked = [torch.logsumexp(row, 0) - row[t - 1] for row, t in zip(cosine, batch.target.tolist(), strict=True)]
    actual = model(batch)
    assert set(actual) == set(model.loss_weights) == {"ranking"}
    assert model.similarity == "cosine"
    assert_same(actual["ranking"], torch.stack(picked).mean(), list(model.parameters()), 1e-8)


def test_every_parameter_learns() -> None:
    model = TedRec(OPTIONS, model_context()).train()
    model(make_batch(HISTORIES))["ranking"].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_user_vectors_depend_on_neither_batch_nor_target() -> None:
    model, batch = _tedrec(), make_batch(HISTORIES)
    vectors = model.user_vectors(batch)
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
    assert torch.equal(model.user_vectors(replace(batch, target=batch.target * 0)), vectors)
