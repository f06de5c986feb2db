"""DMMD4SR: every part, every loss and the whole model against loops over rows and tokens in float64, with gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models.contract import Batch
from models.dmmd4sr.layers import ExpertFusion, InterestGate, TokenDenoiser, Uncertain
from models.dmmd4sr.model import DMMD4SR
from models.errors import UserError
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.transformer import LAYER_NORM_EPS
from models.options.dmmd4sr import DMMD4SROptions
from models.tensor_table import TensorTable
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    LENGTH,
    assert_same,
    layer_norm,
    make_batch,
    model_context,
    randomise,
)

HIDDEN, STEPS, TIME, CLUSTERS, SEED = 6, 8, 4, 3, 3
OPTIONS = DMMD4SROptions(
    hidden=HIDDEN, inner=8, steps=STEPS, start=3, time_width=TIME, clusters=CLUSTERS, final_mix=0.3,
    attention_dropout=0.0, hidden_dropout=0.0, denoiser_dropout=0.0,
)  # fmt: skip
NAMES = ["text_domain", "visual_domain", "text_interest", "visual_interest", "final"]


def _model(options: DMMD4SROptions = OPTIONS) -> DMMD4SR:
    model = DMMD4SR(options, model_context(seed=SEED)).double()
    randomise(model)
    return model


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Linear)
    y = module.weight @ x
    return y if module.bias is None else y + module.bias


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def _sinusoids(t: int) -> Tensor:
    angles = [t * 10_000 ** (-2 * i / TIME) for i in range(TIME // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def _estimate(net: TokenDenoiser, x: Tensor, t: int) -> Tensor:
    """One layer over [x; sinusoids of t], tanh, one more layer."""
    weight = torch.cat([net.state.weight, net.time.weight], dim=1)
    return _linear(net.out, torch.tanh(weight @ torch.cat([x, _sinusoids(t)]) + net.state.bias))


@pytest.mark.parametrize("per_token", [False, True])
def test_denoiser_is_two_layers_over_the_state_and_the_step(per_token: bool) -> None:
    net = TokenDenoiser(HIDDEN, STEPS, TIME, 0.5).double().eval()
    randomise(net)
    x = _random(4, HIDDEN)
    steps = [0, 5, STEPS, 5] if per_token else [5] * 4
    actual = net(x, torch.tensor(steps)) if per_token else net(x, 5)
    expected = torch.stack([_estimate(net, token, t) for token, t in zip(x, steps, strict=True)])
    assert_same(actual, expected, [x, *net.parameters()], 1e-6)  # the sinusoids are float32
    assert not torch.equal(net.train()(x, 5), net(x, 5)), "dropout on the state"


def _gated(gate: InterestGate, x: Tensor, c: Tensor) -> Tensor:
    joined = torch.cat([x, c])
    g = 1 / (1 + torch.exp(-_linear(gate.gate, joined)))
    first, norm, _, last = gate.mlp
    assert isinstance(norm, nn.LayerNorm)
    inner = layer_norm(_linear(first, joined), norm.weight, norm.bias, norm.eps)
    return (1 - g) * x + g * _linear(last, inner.clamp(min=0))


def test_gate_mixes_the_content_and_what_the_condition_makes_of_it() -> None:
    gate = InterestGate(HIDDEN).double()
    randomise(gate)
    x, c = _random(5, HIDDEN), _random(5, HIDDEN)
    expected = torch.stack([_gated(gate, *pair) for pair in zip(x, c, strict=True)])
    assert_same(gate(x, c), expected, [x, c, *gate.parameters()])


def _divergence(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, exp(log_scale)^2) || N(0, 1)), mean over dimensions, by torch's distributions."""
    own = torch.distributions.Normal(mean, log_scale.exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(own, standard).mean()


@pytest.mark.parametrize("drawn", [False, True])
def test_uncertainty_is_a_reparameterised_normal_with_its_divergence(drawn: bool) -> None:
    module = Uncertain(HIDDEN).double()
    randomise(module)
    x, noise = _random(5, HIDDEN), torch.randn(5, HIDDEN, dtype=torch.float64)
    value, divergence = module(x, noise if drawn else None)
    means = [_linear(module.mean, token) for token in x]
    scales = [_linear(module.log_scale, token) for token in x]
    expected = [m + drawn * torch.exp(s) * n for m, s, n in zip(means, scales, noise, strict=True)]
    assert_same(value, torch.stack(expected), [x, *module.parameters()])
    kl = torch.stack([_divergence(m, s) for m, s in zip(means, scales, strict=True)])
    assert_same(divergence, kl, [x, *module.parameters()])


def _experts(fusion: ExpertFusion, experts: nn.Linear, z: Tensor) -> Tensor:
    """The mean of the best `top` experts, weighted by the softmax over all experts, renormalised."""
    share = torch.exp(_linear(fusion.gate, z))
    share = share / share.sum()
    best = sorted(range(len(share)), key=lambda e: -share[e].item())[: fusion.top]
    total = torch.stack([share[e] for e in best]).sum()
    parts = []
    for e in best:
        rows = slice(e * HIDDEN, (e + 1) * HIDDEN)
        parts.append(share[e] / total * (experts.weight[rows] @ z + experts.bias[rows]))
    return torch.stack(parts).sum(0)


def _fused(fusion: ExpertFusion, text: Tensor, visual: Tensor) -> Tensor:
    joined = torch.cat([_experts(fusion, fusion.text, text), _experts(fusion, fusion.visual, visual)])
    normed = layer_norm(_linear(fusion.join, joined), fusion.norm.weight, fusion.norm.bias, fusion.norm.eps)
    return normed.clamp(min=0)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_fusion_mixes_the_best_experts_of_each_modality(top: int) -> None:
    fusion = ExpertFusion(HIDDEN, 4, top).double()
    randomise(fusion)
    text, visual = _random(7, HIDDEN), _random(7, HIDDEN)
    expected = torch.stack([_fused(fusion, *pair) for pair in zip(text, visual, strict=True)])
    assert_same(fusion(text, visual), expected, [text, visual, *fusion.parameters()])


class _Reference:
    """The whole model, one token after the other; `seen` and `errors` are per row."""

    def __init__(self, model: DMMD4SR, batch: Batch) -> None:
        self.model, self.batch, self.draws = model, batch, KeyedNoise(SEED)
        o = model.options
        beta = torch.linspace(o.beta_start, o.beta_end, o.steps, dtype=torch.float64).tolist()
        self.alpha_bar = [math.prod(1 - b for b in beta[:t]) for t in range(o.steps + 1)]
        self.rows: list[dict[str, Tensor]] = []
        self.tokens = [self._row(row, HISTORIES[row]) for row in range(len(batch))]

    def _noise(self, row: int, position: int) -> dict[str, Tensor]:
        key = self.batch.key[row : row + 1] * LENGTH + position
        drawn: dict[str, Tensor] = {}
        for name, stream in (("text", Stream.TEXT_NOISE), ("visual", Stream.VISUAL_NOISE)):
            first, second = self.draws.normal(key, (2, HIDDEN), stream)[0].double()
            drawn |= {f"{name}_domain": first, f"{name}_interest": second}
        drawn["final"] = self.draws.normal(key, (HIDDEN,), Stream.FUSION_NOISE)[0].double()
        spare = self.draws.normal(key, (2, HIDDEN), Stream.UNCERTAINTY)[0].double()
        return drawn | {"text": spare[0], "visual": spare[1]}

    def _corrupt(self, x: Tensor, t: int, noise: Tensor) -> Tensor:
        return math.sqrt(self.alpha_bar[t]) * x + math.sqrt(1 - self.alpha_bar[t]) * noise

    def _chain(self, name: str, x: Tensor, noise: Mapping[str, Tensor], found: dict[str, Tensor]) -> Tensor:
        """Add noise up to step `start` and go back by posterior means; record the error at the row's random step."""
        net, bar = self.model.denoisers[name], self.alpha_bar
        assert isinstance(net, TokenDenoiser)
        t = int(found[name.replace("_domain", "").replace("_interest", "")])
        estimate = _estimate(net, self._corrupt(x, t, noise[name]), t)
        found[f"error_{name}"] = found.get(f"error_{name}", torch.zeros(())) + ((estimate - x) ** 2).mean()
        x_t = self._corrupt(x, self.model.options.start, noise[name])
        for t, s in pairwise(range(self.model.options.start, -1, -1)):
            x_0, beta = _estimate(net, x_t, t), 1 - bar[t] / bar[s]
            x_t = (math.sqrt(bar[s]) * beta * x_0 + math.sqrt(1 - beta) * (1 - bar[s]) * x_t) / (1 - bar[t])
        return x_t

    def _centre(self, row: int, history: list[int]) -> Tensor:
        """The centre's vectors at the places of the history, whose newest item is the centre's last place."""
        return self._whole_centre(row, history)[LENGTH - len(history) :]

    def _whole_centre(self, row: int, history: list[int]) -> Tensor:
        model = self.model
        vectors = [model.item_embedding.weight[i] for i in history]
        flat = torch.cat([torch.zeros((LENGTH - len(history)) * HIDDEN, dtype=torch.float64), *vectors])
        logits = _linear(model.quantiser.assign, flat)
        if not model.training:
            return model.quantiser.codes[int(logits.argmax())]
        gumbel = self.draws.gumbel(self.batch.key[row : row + 1], (CLUSTERS,), Stream.CLUSTER)[0]
        soft = ((logits + gumbel) / 0.1).softmax(0)
        hard = torch.zeros_like(soft)
        hard[int(soft.argmax())] = 1
        straight = hard + soft - soft.detach()
        return torch.stack([p * code for p, code in zip(straight, model.quantiser.codes, strict=True)]).sum(0)

    def _row(self, row: int, history: list[int]) -> Tensor:
        model, o = self.model, self.model.options
        centre = self._centre(row, history)
        streams = {"text": Stream.TEXT_STEP, "visual": Stream.VISUAL_STEP, "final": Stream.FUSION_STEP}
        found: dict[str, Tensor] = {
            name: self.draws.integers(self.batch.key[row : row + 1], 1, o.steps, stream)[0]
            for name, stream in streams.items()
        }
        found["kl"], found["codebook"] = torch.zeros(()), torch.zeros(())
        tokens = []
        for position, item in enumerate(history):
            identity, noise = model.item_embedding.weight[item], self._noise(row, position)
            norm = model.encoder.norm
            placed = identity + model.encoder.position.weight[position]
            token = layer_norm(placed, norm.weight, norm.bias, LAYER_NORM_EPS)
            drawn = {}
            for name in ("text", "visual"):
                x = _linear(model.project[name], model.content[name](torch.tensor(item)).double())
                x = self._chain(f"{name}_domain", x / x.norm(), noise, found)
                x = _gated(model.gate, x, o.id_weight * identity + o.cluster_weight * centre[position])
                x = self._chain(f"{name}_interest", x, noise, found)
                mean, log_scale = (_linear(m, x) for m in model.uncertain[name].children())
                found["kl"] = found["kl"] + _divergence(mean, log_scale)
                draws = model.training or model.inference == "draw"
                drawn[name] = mean + draws * torch.exp(log_scale) * noise[name]
            fused = token + _fused(model.fusion, drawn["text"], drawn["visual"])
            found["codebook"] = found["codebook"] + ((centre[position] - identity.detach()) ** 2).mean()
            tokens.append((1 - o.final_mix) * fused + o.final_mix * self._chain("final", fused, noise, found))
        self.rows.append({name: value / len(history) for name, value in found.items()})
        return torch.stack(tokens)

    def encode(self) -> Tensor:
        padded = torch.nn.utils.rnn.pad_sequence(self.tokens, batch_first=True)
        layout = Layout.of(self.batch, True)
        return self.model.encoder.contextualise(layout.flatten(padded), layout)

    def losses(self) -> dict[str, Tensor]:
        mean = {name: torch.stack([row[name] for row in self.rows]).mean() for name in self.rows[0]}
        scores = self.encode() @ self.model.item_embedding.weight[1:].T
        wanted = self.batch.target.tolist()
        ranking = [torch.logsumexp(row, 0) - row[t - 1] for row, t in zip(scores, wanted, strict=True)]
        return {
            "ranking": torch.stack(ranking).mean(),
            "uncertainty": mean["kl"], "codebook": mean["codebook"], "final": mean["error_final"],
            "domain": mean["error_text_domain"] + mean["error_visual_domain"],
            "interest": mean["error_text_interest"] + mean["error_visual_interest"],
        }  # fmt: skip


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test twice: with packed batches as on a CPU, and with padding as on a GPU."""
    of, chosen = Layout.of, request.param
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch, pack=chosen: of(batch, pack)))


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("way", ["training", "draw", "mean"])
def test_the_whole_pass_and_every_loss_equal_loops_over_tokens(way: str) -> None:
    """Training and evaluation give the encoder the same fused, denoised sequence; only the draws differ."""
    model, batch = _model().train(way == "training"), make_batch(HISTORIES)
    assert model.inference_choices == ("draw", "mean")
    if way != "training":
        model.inference = way
    reference = _Reference(model, batch)
    leaves = list(model.parameters())
    assert_same(model.encode(batch), reference.encode(), leaves, 2e-5)  # coefficients and sinusoids are float32
    actual, expected = model(batch), reference.losses()
    assert set(actual) == set(expected) == set(model.loss_weights)
    for name, value in expected.items():
        assert_same(actual[name].double(), value, leaves, 2e-5)  # the codebook loss is float32


def test_weights_are_the_released_ones() -> None:
    """CE + .001 (L_td + L_vd) + .01 (.5 (L_tc + L_vc) + .5 L_f + 2 KL); the codebook loss trains only the centres."""
    assert _model().loss_weights == {
        "ranking": 1.0, "domain": 0.001, "interest": 0.005, "final": 0.005, "uncertainty": 0.02, "codebook": 1.0,
    }  # fmt: skip


def test_every_parameter_learns() -> None:
    model = DMMD4SR(DMMD4SROptions(hidden=HIDDEN, clusters=CLUSTERS), model_context()).train()
    randomise(model)
    losses = model(make_batch(HISTORIES))
    torch.autograd.backward([model.loss_weights[name] * value for name, value in losses.items()])
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_content_and_levels_reach_the_ranking_in_training_too() -> None:
    """The released code computes the fused sequence in training, and then ranks by the IDs alone."""
    model = _model().train()
    torch.autograd.backward(model(make_batch(HISTORIES))["ranking"])
    parts = [model.project, model.denoisers, model.gate, model.quantiser, model.uncertain, model.fusion]
    for name, p in [pair for part in parts for pair in part.named_parameters()]:
        assert p.grad is not None
        assert p.grad.any(), name


def test_losses_are_means_over_rows_however_the_batch_is_cut() -> None:
    model, batch = _model().train(), make_batch(HISTORIES)
    whole = model(batch)
    parts = [(model(batch[rows]), len(batch[rows]) / len(batch)) for rows in (slice(0, 2), slice(2, 6))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(weight * terms[name] for terms, weight in parts), value)


def test_user_vectors_depend_on_neither_batch_nor_target_nor_user() -> None:
    model, batch = _model().eval(), make_batch(HISTORIES)
    vectors = model.user_vectors(batch)
    assert torch.equal(model.user_vectors(batch), vectors), "the released code draws anew at every evaluation"
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
    unknown = replace(batch, target=batch.target * 0, user=torch.full_like(batch.user, -1))
    assert torch.equal(model.user_vectors(unknown), vectors)


def test_the_padding_row_of_the_item_table_is_never_read() -> None:
    model, batch = _model().eval(), make_batch(HISTORIES)
    before = model.user_vectors(batch)
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    assert torch.equal(model.user_vectors(batch), before)


@pytest.mark.parametrize(
    ("switches", "losses"),
    [({"use_denoising": False}, {"ranking", "uncertainty"}), ({"use_content": False}, {"ranking"})],
)
def test_ablations_drop_their_losses_and_parameters(switches: Mapping[str, bool], losses: set[str]) -> None:
    model, batch = _model(replace(OPTIONS, **switches)).train(), make_batch(HISTORIES)
    terms = model(batch)
    assert set(terms) == set(model.loss_weights) == losses
    torch.autograd.backward(list(terms.values()))
    assert all(p.grad is not None for p in model.parameters())
    if losses == {"ranking"}:
        layout = Layout.of(batch)
        expected = model.encoder(model.item_embedding(layout.flatten(batch.history)), layout)
        assert_same(model.encode(batch), expected, list(model.parameters()))


def test_an_item_table_without_any_content_gives_finite_vectors() -> None:
    """If no item has content, all items share one learned vector."""
    absent = torch.zeros(ITEMS, dtype=torch.bool)
    table = TensorTable(
        ITEMS, {"text": torch.zeros(ITEMS, 7), "visual": torch.zeros(ITEMS, 6)}, {"text": absent, "visual": absent}, {}
    )
    model = DMMD4SR(OPTIONS, model_context(table=table))
    assert all(torch.isfinite(value) for value in model(make_batch(HISTORIES)).values())


def test_bf16_gives_finite_losses_close_to_float32() -> None:
    model, batch = DMMD4SR(OPTIONS, model_context()).train(), make_batch(HISTORIES)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    for name, value in exact.items():
        assert torch.isfinite(rough[name])
        assert rough[name].item() == pytest.approx(value.item(), rel=0.1, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 33}, "start is 33: it must be in 1..steps (32)"),
        ({"start": 0}, "start is 0"),
        ({"top_experts": 5}, "top_experts is 5: it must be in 1..experts (4)"),
        ({"beta_end": 1e-5}, "beta_start is 0.0001"),
        ({"final_mix": 1.1}, "final_mix is 1.1"),
        ({"lambda_domain": -1.0}, "lambda_domain is -1.0"),
        ({"denoiser_dropout": 1.0}, "denoiser_dropout is 1.0"),
        ({"clusters": 0}, "clusters is 0"),
        ({"heads": 5}, "heads is 5"),
    ],
)
def test_impossible_options_are_named(options: Mapping[str, float], message: str) -> None:
    with pytest.raises(UserError) as error:
        DMMD4SROptions(**options)  # type: ignore[arg-type]
    assert message in str(error.value)
