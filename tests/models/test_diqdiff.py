"""DiQDiff against loops: the approximator token by token, guidance, uniformity over pairs, both ways of inference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.diqdiff import Approximator, DiQDiff
from models.errors import UserError
from models.losses.contrastive import uniformity
from models.nn.diffusion import betas
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.transformer import EncoderLayer
from models.options.diqdiff import DiQDiffOptions
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

HIDDEN, HEADS, STEPS, CODES, SEED = 6, 2, 4, 3, 3
# the noise has enough weight that an error in it would be noticed
OPTIONS = DiQDiffOptions(
    hidden=HIDDEN, inner=10, layers=2, heads=HEADS, steps=STEPS, codes=CODES, lambda_noise=0.3, code_temperature=0.5
)
STILL = replace(OPTIONS, embedding_dropout=0.0, dropout=0.0)


def _model(options: DiQDiffOptions = STILL) -> DiQDiff:
    model = DiQDiff(options, model_context(seed=SEED)).double().train()
    randomise(model)
    return model


def _norm(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
    return layer_norm(x, module.weight, module.bias, 1e-12)


def _linear(module: torch.nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, torch.nn.Linear)
    return module.weight @ x + module.bias


def _reference_layer(layer: EncoderLayer, states: list[Tensor]) -> list[Tensor]:
    """A pre-LN layer in which every token attends to every token of its row."""
    part = layer.attention
    read = [_norm(x, part.norm) for x in states]
    keys, values = zip(*(_linear(part.key_value, x).chunk(2) for x in read), strict=True)
    after = []
    for x, y in zip(states, read, strict=True):
        x = x + _linear(part.out, attend(_linear(part.query, y), keys, values, HEADS))
        after.append(x + _linear(layer.outer, gelu(_linear(layer.inner, _norm(x, layer.norm)))))
    return after


def _reference_approximate(module: Approximator, guidance: list[Tensor], x: Tensor, t: int) -> Tensor:
    """One row: sinusoids of the rescaled step, noise on every token, every token of every layer, the last one read."""
    half = HIDDEN // 2
    angles = [(t - 1) * 1000 / STEPS * 10_000 ** (-i / half) for i in range(half)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    inner = _linear(module.time[0], waves)
    state = x + _linear(module.time[2], inner / (1 + torch.exp(-inner)))
    states = [token + 0.3 * state for token in guidance]
    for layer in module.layers:
        assert isinstance(layer, EncoderLayer)
        states = _reference_layer(layer, states)
    return _norm(states[-1], module.norm)


@pytest.mark.parametrize("pack", [True, False])
def test_approximator_equals_loops_over_tokens(pack: bool) -> None:
    module, batch = Approximator(STILL).double(), make_batch(HISTORIES)
    randomise(module)
    layout = Layout.of(batch, pack)
    guidance = torch.randn(len(batch), LENGTH, HIDDEN, dtype=torch.float64, requires_grad=True)
    x = torch.randn(len(batch), HIDDEN, dtype=torch.float64, requires_grad=True)
    t = 1 + torch.arange(len(batch)) % STEPS
    rows = [list(guidance[b, : len(h)]) for b, h in enumerate(HISTORIES)]
    expected = [_reference_approximate(module, row, x[b], int(t[b])) for b, row in enumerate(rows)]
    actual = module(layout.flatten(guidance), x, t, layout)
    # the sinusoids are made in float32
    assert_same(actual, torch.stack(expected), [guidance, x, *module.parameters()], 1e-4)


def test_values_are_dropped_where_the_released_code_drops_them() -> None:
    """Inside every feed-forward layer, after every layer, and before the last LayerNorm."""
    module, batch, calls = Approximator(OPTIONS), make_batch(HISTORIES), list[None]()
    assert [layer.inner_dropout.p for layer in module.layers] == [OPTIONS.dropout] * 2  # type: ignore[union-attr]
    module.dropout.register_forward_hook(lambda *_: calls.append(None))
    layout = Layout.of(batch)
    module(torch.randn(len(batch), LENGTH, HIDDEN).flatten(0, 1)[: len(layout.row())], torch.randn(len(batch), HIDDEN),
           torch.ones(len(batch), dtype=torch.int64), layout)  # fmt: skip
    assert (module.dropout.p, len(calls)) == (OPTIONS.dropout, 3)


def test_an_inner_dropout_leaves_a_residual_and_a_bias() -> None:
    torch.manual_seed(0)
    batch = make_batch(HISTORIES)
    layout = Layout.of(batch)
    layer = EncoderLayer(HIDDEN, 8, HEADS, 0.0, 0.0, norm_first=True, inner_dropout=1.0).train()
    torch.nn.init.constant_(layer.outer.bias, 3.0)
    x = torch.randn(len(layout.row()), HIDDEN)
    assert_close = torch.testing.assert_close
    assert_close(layer(x, layout, False), layer.attention(x, layout, False) + 3.0, rtol=0, atol=0)


def _reference_guidance(model: DiQDiff, history: list[int], gumbel: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The guidance for the tokens of one row, and the row's term of the codebook loss."""
    tokens = [_norm(model.item_embedding.weight[i], model.norm) for i in history]
    first = LENGTH - len(tokens)  # the newest item comes last
    flat = torch.cat([torch.zeros(HIDDEN, dtype=torch.float64)] * first + tokens)
    logits = _linear(model.quantiser.assign, flat)
    noisy = logits if gumbel is None else (logits + gumbel) / 0.5
    centre = model.quantiser.codes[int(noisy.argmax())]
    if gumbel is not None:
        soft = (noisy.softmax(0)[:, None, None] * model.quantiser.codes.detach()).sum(0)
        centre = centre + soft - soft.detach()
    square = [((centre[first + p] - token.detach()) ** 2).sum() for p, token in enumerate(tokens)]
    loss = torch.stack(square).sum() / (len(tokens) * HIDDEN)
    return [0.6 * token + 0.4 * centre[first + p] for p, token in enumerate(tokens)], loss


def _signal(t: int) -> float:
    beta: list[float] = betas("trunc_lin", STEPS).tolist()
    return math.prod(1 - b for b in beta[:t])


def _reference_losses(model: DiQDiff) -> dict[str, Tensor]:
    batch, noise = make_batch(HISTORIES), KeyedNoise(SEED)
    gumbel = noise.gumbel(batch.key, (CODES,), Stream.CLUSTER).double()
    steps = noise.integers(batch.key, 1, STEPS, Stream.TARGET_STEP).tolist()
    normal = noise.normal(batch.key, (HIDDEN,), Stream.TARGET_NOISE).double()
    table, estimates, codebook, ranking, contrast = model.item_embedding.weight, [], [], [], []
    for b, (history, target) in enumerate(zip(HISTORIES, batch.target.tolist(), strict=True)):
        guidance, loss = _reference_guidance(model, history, gumbel[b])
        codebook.append(loss)
        x = math.sqrt(_signal(steps[b])) * table[target] + math.sqrt(1 - _signal(steps[b])) * normal[b]
        estimates.append(_reference_approximate(model.approximator, guidance, x, steps[b]))
        logits = torch.stack([estimates[-1] @ item for item in table[1:]])
        ranking.append(torch.logsumexp(logits, 0) - logits[target - 1])
    for one in estimates:
        cosines = torch.stack([one @ two / (one.norm() * two.norm()) for two in estimates]) / 0.07
        contrast.append(torch.logsumexp(cosines, 0) - 1 / 0.07)
    terms = {"codebook": codebook, "ranking": ranking, "contrast": contrast}
    return {name: torch.stack(rows).mean() for name, rows in terms.items()}


@pytest.mark.usefixtures("layouts")
def test_losses_equal_loops_over_rows() -> None:
    model = _model()
    expected, actual = _reference_losses(model), model(make_batch(HISTORIES))
    assert set(actual) == set(expected) == set(model.loss_weights)
    for name in expected:  # the schedule's coefficients and the sinusoids are float32
        assert_same(actual[name].double(), expected[name], list(model.parameters()), 1e-4)


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("inference", ["direct", "chain"])
def test_user_vectors_equal_loops_over_rows_and_steps(inference: str) -> None:
    """From keyed noise, either one call at T, or T calls, each followed by DDPM's posterior mean."""
    model, batch = _model(OPTIONS).eval(), make_batch(HISTORIES)
    model.inference = inference
    start = KeyedNoise(SEED).normal(batch.key, (HIDDEN,), Stream.START_NOISE).double()
    beta, expected = [0.0, *betas("trunc_lin", STEPS).tolist()], []
    for b, history in enumerate(HISTORIES):
        guidance, _ = _reference_guidance(model, history, None)
        x = start[b]
        for t in range(STEPS, 0, -1):
            before, now = _signal(t - 1), _signal(t)
            estimate = _reference_approximate(model.approximator, guidance, x, t)
            x = estimate if inference == "direct" else (
                math.sqrt(before) * beta[t] * estimate + math.sqrt(1 - beta[t]) * (1 - before) * x
            ) / (1 - now)  # fmt: skip
            if inference == "direct":
                break
        expected.append(x)
    torch.testing.assert_close(model.user_vectors(batch), torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inference", ["direct", "chain"])
def test_user_vectors_depend_on_neither_batch_nor_target_nor_user(inference: str) -> None:
    model, batch = _model(OPTIONS).eval(), make_batch(HISTORIES)
    model.inference = inference
    vectors = model.user_vectors(batch)
    assert vectors.isfinite().all()
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
    other = replace(batch, target=batch.target * 0, user=torch.full_like(batch.user, -1))
    assert torch.equal(model.user_vectors(other), vectors)


@pytest.mark.usefixtures("layouts")
def test_padding_changes_nothing() -> None:
    model, batch = _model().eval(), make_batch(HISTORIES)
    before, losses = model.user_vectors(batch), model(batch)
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    assert torch.equal(model.user_vectors(batch), before)
    assert all(torch.equal(loss, losses[name]) for name, loss in model(batch).items())


def test_every_token_is_read_and_the_last_apart() -> None:
    """Attention is bidirectional: without centres the first two tokens can be swapped, but not the last one."""
    model = _model(replace(STILL, lambda_intent=0.0)).eval()
    base, swapped, other, moved = model.user_vectors(
        replace(make_batch([[1, 2, 3], [2, 1, 3], [4, 2, 3], [1, 3, 2]]), key=torch.ones(4, dtype=torch.int64))
    )
    torch.testing.assert_close(base, swapped)
    assert (base - other).abs().max() > 1e-3
    assert (base - moved).abs().max() > 1e-3


def test_uniformity_counts_a_repeated_row_once() -> None:
    x = torch.randn(5, HIDDEN, dtype=torch.float64, requires_grad=True)
    key = torch.tensor([3, 9, 4, 7, 1])
    again = torch.cat([x, x[1:2]]), torch.cat([key, key[1:2]])
    whole, repeated = uniformity(x, key, 0.07), uniformity(again[0], again[1], 0.07)
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2) / 0.07
    rows = torch.logsumexp(cosines, dim=1) - 1 / 0.07
    assert_same(whole, rows.mean(), [x])
    # other rows see it once; its own term sees it twice, but the engine gives that term no weight
    second = torch.logaddexp(torch.logsumexp(cosines[1], dim=0), cosines[1, 1]) - 1 / 0.07
    assert_same(repeated, (rows.sum() + second) / 6, [x])


def test_uniformity_of_a_lone_row_is_nothing() -> None:
    x = torch.randn(1, HIDDEN, dtype=torch.float64, requires_grad=True)
    assert_same(uniformity(x, torch.tensor([2]), 0.07), (x * 0).sum(), [x])


def test_terms_that_are_switched_off_are_not_computed() -> None:
    model = _model(replace(STILL, lambda_intent=0.0, lambda_contrast=0.0))
    assert set(model(make_batch(HISTORIES))) == set(model.loss_weights) == {"ranking"}
    assert not any("quantiser" in name for name, _ in model.named_parameters())


def test_every_parameter_learns() -> None:
    model = DiQDiff(OPTIONS, model_context()).train()
    losses = model(make_batch(HISTORIES))
    sum(model.loss_weights[name] * loss for name, loss in losses.items()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_bfloat16_autocast_stays_close() -> None:
    model, batch = DiQDiff(STILL, model_context()), make_batch(HISTORIES)
    plain = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    for name, loss in plain.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"steps": 0}, "steps"), ({"codes": 0}, "codes"), ({"hidden": 6, "heads": 4}, "heads"),
     ({"dropout": 1.0}, "dropout"), ({"lambda_intent": -1.0}, "lambda_intent"),
     ({"contrast_temperature": 0.0}, "contrast_temperature")],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        DiQDiffOptions(**options)
