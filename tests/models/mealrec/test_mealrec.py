"""MealRec: its training pass and its evaluation, composed here from parts that other tests check."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.contract import Batch
from models.mealrec.model import FusionMLP, MealRec
from models.mealrec.npd import PreferenceDenoiser
from models.nn.diffusion import betas
from models.nn.noise import KeyedNoise, Stream
from models.options.mealrec import MealRecOptions, TCDOptions
from models.options.sasrec import SASRecOptions
from models.options.tedrec import TedRecOptions
from tests.helpers.model_fixtures import HISTORIES, MISSING, make_batch, model_context, randomise, wake

SEED, T, HIDDEN = 6, 5, 8
SMALL = MealRecOptions(
    sasrec=SASRecOptions(hidden=HIDDEN, inner=8),
    tedrec=TedRecOptions(hidden=HIDDEN, inner=8, experts=2),
    tcd=TCDOptions(channels=(16, 24)),
    steps=T,
)
CASES: dict[str, dict[str, Any]] = {
    "TedRec": {},
    "SASRec": {"backbone": "sasrec"},
    "-TCD": {"use_tcd": False},
    "-NPD": {"use_npd": False},
    "-TCD-NPD": {"use_tcd": False, "use_npd": False},
    "targets not detached": {"detach_content": False},
    "targets detached": {"detach_preference": True},
    "mix": {"mix": 0.3},
    "another decay": {"tcd": TCDOptions(channels=(16, 24), decay=0.2, null_token=False)},
}


def _model(**options: Any) -> MealRec:
    """A small model without dropout, with weights large enough that every term has an effect."""
    torch.manual_seed(1)
    model = MealRec(replace(SMALL, **options), model_context(seed=SEED)).eval()
    randomise(model, 0.3)
    return model


def _alpha_bar(t: int) -> float:
    return float(math.prod(1 - beta for beta in betas("linear", T).tolist()[:t]))


def _corrupt(clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Eq. 2, row by row."""
    levels = [_alpha_bar(step) for step in t.tolist()]
    rows = [math.sqrt(a) * x + math.sqrt(1 - a) * e for a, x, e in zip(levels, clean, noise, strict=True)]
    return torch.stack(rows)


def _refined(model: MealRec, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The estimate of z_0 (Eq. 8), row by row: a multiple of the noisy state, a linear part and the U-Net's."""
    f, rows = model.refine, []
    for row, step, c in zip(noisy, t.tolist(), context, strict=True):
        level = _alpha_bar(step)
        linear = row @ f.state.weight.T + f.state.bias + f.context.weight @ c
        rows.append(math.sqrt(level) * row + math.sqrt(1 - level) * linear)
    return torch.stack(rows) + f.unet(noisy, t, context)  # type: ignore[no-any-return]


def _length(x: Tensor) -> Tensor:
    """(B, 1) root mean square of each row."""
    return torch.stack([(row * row).mean().sqrt() for row in x])[:, None]


def _direction(x: Tensor) -> Tensor:
    """A preference is denoised with unit mean square, whatever the length of the vector it is made from (D20)."""
    return x / _length(x)


def _content(model: MealRec, field: str, item: int) -> Tensor:
    """The content of item `item`, or the learned vector if it has none."""
    part = getattr(model, field)
    if item == MISSING:
        return part.missing  # type: ignore[no-any-return]
    raw, (mean, deviation) = part.table.gather(field, torch.tensor(item)), part.table.moments(field)
    return raw if field == "text" else (raw - mean) / deviation  # type: ignore[no-any-return]


def _context(model: MealRec, history: list[int]) -> Tensor:
    """Eq. 7."""
    weight = [math.exp(-model.options.tcd.decay * (len(history) - k)) for k in range(1, len(history) + 1)]
    visual = [_content(model, "visual", item) for item in history]
    return torch.stack([w / sum(weight) * v for w, v in zip(weight, visual, strict=True)]).sum(0)


def _last(model: MealRec, field: str) -> Tensor:
    return torch.stack([_content(model, field, history[-1]) for history in HISTORIES])


def _reference_losses(model: MealRec, batch: Batch) -> dict[str, Tensor]:
    """Sections 4.3 to 4.5 in order: one random step per row and denoiser; both estimates keep their gradient."""
    options, noise, losses = model.options, KeyedNoise(SEED), {}
    z = _last(model, "sequence")
    if options.use_tcd:
        clean = model.temporal(z)
        t = noise.integers(batch.key, 1, T, Stream.TCD_STEP)
        noisy = _corrupt(clean, t, noise.normal(batch.key, clean.shape[1:], Stream.TCD_NOISE))
        z = _refined(model, noisy, t, torch.stack([_context(model, h) for h in HISTORIES]))
        losses["tcd"] = ((z - (clean.detach() if options.detach_content else clean)) ** 2).sum() / (len(t) * z.shape[1])
    encoded = model.backbone.encode(batch)
    x = state = _direction(encoded)
    if options.use_npd:
        t = noise.integers(batch.key, 1, T, Stream.NPD_STEP)
        state = _corrupt(x, t, noise.normal(batch.key, (HIDDEN,), Stream.NPD_NOISE))
    added = model.preference(state, z, _last(model, "text"))
    estimate = _direction(state + added)
    if options.use_npd:
        clean, kept = (x.detach(), state.detach()) if options.detach_preference else (x, state)
        losses["npd"] = ((_direction(kept + added) - clean) ** 2).sum() / len(t)
    user = _length(encoded) * ((1 - options.mix) * estimate + options.mix * x)
    item = model.backbone.item_embedding.weight[1:]
    if options.backbone == "tedrec":
        logits = torch.cosine_similarity(user[:, None], item[None], dim=2) / model.options.tedrec.temperature
    else:
        logits = user @ item.T
    return {"ranking": F.cross_entropy(logits, batch.target - 1), **losses}


def _gradients(model: MealRec, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(names, parameters, values, strict=True)
    return {name: torch.zeros_like(p) if value is None else value for name, p, value in pairs}


@pytest.mark.parametrize("case", CASES)
def test_training_pass_equals_the_equations(case: str) -> None:
    """Compare every loss term, and the gradient of each term for every parameter."""
    model, batch = _model(**CASES[case]), make_batch(HISTORIES)
    actual, expected = model(batch), _reference_losses(model, batch)
    assert {name for name in actual if name in model.loss_weights} == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)
        got, wanted = _gradients(model, actual[name]), _gradients(model, value)
        for parameter, gradient in wanted.items():
            assert (got[parameter] - gradient).norm() <= 2e-3 * gradient.norm() + 1e-5, (name, parameter)


def test_weights_are_those_of_eq_16() -> None:
    model = _model(lambda_tcd=0.3, lambda_npd=0.7)
    assert model.loss_weights == {"ranking": 1.0, "tcd": 0.3, "npd": 0.7}
    figures = {f"{part}/{name}" for part in ("tcd", "npd") for name in ("explained", "explained_by_input")}
    assert set(model(make_batch(HISTORIES))) == {*model.loss_weights, *figures}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns(case: str) -> None:
    """In training mode, with rows where the item without content is the last item, or an earlier one."""
    torch.manual_seed(2)
    model = MealRec(replace(SMALL, **CASES[case]), model_context(seed=SEED)).train()
    wake(model)
    losses = model(make_batch(HISTORIES * 3))
    weighted = [model.loss_weights[name] * value for name, value in losses.items() if name in model.loss_weights]
    gradients = _gradients(model, torch.stack(weighted).sum())
    silent = {name for name, gradient in gradients.items() if not gradient.any()}
    # content that no part of this variant reads
    unread = {"visual.missing"} if "-TCD" in case else set()
    # with c_v as the only key the softmax is 1: neither queries nor keys matter (D8)
    without_choice = ("refine.unet.attention.query", "refine.unet.attention.norm")
    bare = {name for name in gradients if name.startswith(without_choice)} if case == "another decay" else set()
    assert silent == unread | bare


def _flows(term: str, part: str, **options: Any) -> Tensor:
    """The gradient of one loss term for one parameter, as one vector."""
    model = _model(**options)
    gradients = _gradients(model, model(make_batch(HISTORIES))[term])
    return torch.cat([g.flatten() for name, g in gradients.items() if name.startswith(part)])


def test_detaching_a_target_changes_what_its_loss_teaches() -> None:
    for term, part, option in (
        ("tcd", "temporal.", "detach_content"),
        ("npd", "backbone.", "detach_preference"),
    ):
        detached, through = (_flows(term, part, **{option: flag}) for flag in (True, False))
        assert (detached - through).norm() > 0.01 * through.norm()


def test_ranking_loss_reaches_tcd_through_npd() -> None:
    """Training is end to end (D15): the refined content keeps its gradient."""
    assert _flows("ranking", "refine.").norm() > 0
    assert _flows("ranking", "temporal.").norm() > 0
    assert _flows("npd", "refine.").norm() > 0


def test_ablations_leave_their_parts_out() -> None:
    full, fused = _model(), _model(use_npd=False)
    assert isinstance(full.preference, PreferenceDenoiser)
    assert isinstance(fused.preference, FusionMLP)
    names = {name.split(".")[0] for name, _ in _model(use_tcd=False).named_parameters()}
    assert names.isdisjoint({"refine", "temporal"})
    x, z, h = torch.randn(2, HIDDEN), torch.randn(2, 5, 6), torch.randn(2, 7)
    m = fused.preference
    stacked = torch.cat([x, sum(m.visual(z[:, k]) for k in range(5)) / 5, m.text(h)], dim=1)
    torch.testing.assert_close(m(x, z, h), m.out(F.gelu(m.fuse(stacked))))


def test_draws_follow_the_row_not_the_batch() -> None:
    """The mean over a batch is the mean over its halves: steps and noise are keyed by row."""
    model, batch = _model(), make_batch(HISTORIES)
    whole, halves = model(batch), [model(batch[:3]), model(batch[3:])]
    for name in model.loss_weights:
        value = whole[name]
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-5)
    other = model(replace(batch, key=batch.key + 1))
    assert all(other[name] != value for name, value in whole.items())


@pytest.mark.parametrize("case", ["TedRec", "SASRec", "-TCD", "-NPD"])
def test_training_starts_with_the_ranking_of_the_backbone(case: str) -> None:
    """What the denoisers add to their inputs is zero before the first step."""
    torch.manual_seed(3)
    model, batch = MealRec(replace(SMALL, **CASES[case]), model_context(seed=SEED)).eval(), make_batch(HISTORIES)
    alone = model.backbone.user_vectors(batch)
    torch.testing.assert_close(model.user_vectors(batch), alone, rtol=1e-5, atol=1e-6)
    if "tcd" in (losses := model(batch)):
        z = model.temporal(_last(model, "sequence"))
        t = model.noise.integers(batch.key, 1, T, Stream.TCD_STEP)
        noise = torch.tensor([1 - _alpha_bar(step) for step in t.tolist()])
        assert losses["tcd"] < 1.5 * (noise * z.square().sum(2).mean(1)).mean()


def test_the_noise_that_npd_passes_on_is_no_gradient_of_the_backbone() -> None:
    """Before the first step g only passes x_t on, so that L_N would teach the backbone nothing but the noise (D17)."""
    for detach in (True, False):
        torch.manual_seed(3)
        model = MealRec(replace(SMALL, detach_preference=detach), model_context(seed=SEED)).eval()
        gradients = _gradients(model, model(make_batch(HISTORIES))["npd"])
        reached = [name for name, gradient in gradients.items() if name.startswith("backbone.") and gradient.any()]
        assert bool(reached) != detach
        assert gradients["preference.linear.weight"].any()
