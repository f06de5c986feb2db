"""M3BSR against loops over rows, tokens and experts: parts by behaviour, conditional diffusions, interest experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.contract import Batch
from models.errors import UserError
from models.layout import Layout
from models.m3bsr import M3BSR, M3BSROptions
from models.m3bsr_parts import (
    CrossAttention,
    Denoiser,
    InterestExperts,
    NoisePredictor,
    Part,
    compact,
    mean_cosine,
    unit,
)
from models.noise import KeyedNoise, Stream
from models.schedule import Diffusion
from tests.model_fixtures import (
    HISTORIES,
    ITEMS,
    LENGTH,
    assert_same,
    attend,
    item_table,
    layer_norm,
    make_batch,
    model_context,
    randomise,
)

HIDDEN, HEADS, STEPS = 8, 2, 20
OPTIONS = M3BSROptions(hidden=HIDDEN, inner=10, heads=HEADS, steps=STEPS, evaluation_step=8, chain=3, dropout=0.0)
NAMES = ("view", "like", "hate")
VIEW, LIKE, HATE = 1, 2, 4
BOTH = VIEW | LIKE
#: of HISTORIES: nothing deep, some deep, all deep, deep without a view, items of neither, nothing shown at all
SHOWN = [[VIEW], [VIEW, BOTH, VIEW | HATE, BOTH], [BOTH, BOTH], [VIEW, LIKE], [HATE, VIEW, 0], [0, 0, 0, 0]]
STREAMS = (Stream.BEHAVIOUR_STEP, Stream.BEHAVIOUR_NOISE)


def _batch(shown: Sequence[Sequence[int]] = SHOWN) -> Batch:
    bits = torch.tensor([[*row, *[0] * (LENGTH - len(row))] for row in shown], dtype=torch.uint8)
    return replace(make_batch(HISTORIES), behaviours=bits)


def _model(options: M3BSROptions = OPTIONS, names: tuple[str, ...] = NAMES) -> M3BSR:
    model = M3BSR(options, replace(model_context(), behaviours=names)).double().eval()
    randomise(model)
    return model


@pytest.fixture(params=["packed", "padded"])
def layouts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches laid out as on a CPU, and as on a GPU with their padding kept."""
    of, pack = Layout.of, request.param == "packed"
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))


def _parts(batch: Batch, *keeps: Tensor) -> tuple[Part, ...]:
    return tuple(Part.of(batch, keep, Layout.of(batch)) for keep in keeps)


def _real(batch: Batch) -> Tensor:
    return torch.arange(LENGTH) < batch.length[:, None]


def _rows(x: Tensor, part: Part) -> list[list[Tensor]]:
    """The tokens of each row of a part."""
    return [list(row[:n]) for row, n in zip(part.layout.pad(x), part.length.tolist(), strict=True)]


def _flat(rows: Sequence[Sequence[Tensor]], part: Part) -> Tensor:
    """The inverse of `_rows`; padding stays zero."""
    padded = [torch.stack([*row, *[torch.zeros_like(row[0])] * (LENGTH - len(row))]) for row in rows]
    return part.layout.flatten(torch.stack(padded))


def _without_padding(x: Tensor, part: Part) -> Tensor:
    return x * (part.layout.position() < part.length[part.layout.row()])[:, None]


def _linear_rows(module: Any, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias  # type: ignore[no-any-return]


def _linear(module: Any, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias  # type: ignore[no-any-return]


# --- parts -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=6, max_size=6), st.booleans())
def test_a_part_is_what_a_loop_over_the_history_keeps(keep: list[list[bool]], pack: bool) -> None:
    of = Layout.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))
        _check_part(keep)


def _check_part(keep: list[list[bool]]) -> None:
    batch = _batch()
    mask = torch.tensor(keep) & _real(batch)
    part, layout = _parts(batch, mask)[0], Layout.of(batch)
    x = torch.randn(len(HISTORIES), LENGTH, 3, dtype=torch.float64)
    null = torch.full((3,), 7.0, dtype=torch.float64)
    taken = part.take(layout.flatten(x), null)
    put = layout.pad(part.put(taken, layout.flatten(torch.zeros_like(x))))
    total = 0.0
    for b, row in enumerate(mask.tolist()):
        kept = [x[b, p] for p in range(LENGTH) if row[p]]
        total += float(torch.stack(kept).sum() / len(kept)) if kept else 0.0
        assert torch.equal(torch.stack(_rows(taken, part)[b]), torch.stack(kept or [null]))
        assert torch.equal(put[b], x[b] * mask[b][:, None])
    assert part.length.tolist() == [max(sum(row), 1) for row in mask.tolist()]
    mean = ((taken * part.real[:, None]).sum(1) * part.weight).sum()
    assert mean.item() == pytest.approx(total / len(keep), abs=1e-5)


def test_compact_moves_behaviours_with_their_items() -> None:
    batch, keep = _batch(), torch.tensor([[True, False, True, True]] * len(HISTORIES)) & _real(_batch())
    kept, _, count = compact(batch, keep)
    for b, (history, shown) in enumerate(zip(HISTORIES, SHOWN, strict=True)):
        wanted = [(i, s) for p, (i, s) in enumerate(zip(history, shown, strict=True)) if p != 1]
        wanted += [(0, 0)] * (LENGTH - len(wanted))
        assert list(zip(kept.history[b].tolist(), kept.behaviours[b].tolist(), strict=True)) == wanted
    assert count.tolist() == [1, 3, 1, 1, 2, 3]


def test_unit_tokens_have_no_mean_and_variance_one() -> None:
    x = torch.randn(5, 9, dtype=torch.float64)
    expected = torch.stack([layer_norm(row, None, None, 1e-12) for row in 1e-2 * x + 3])
    torch.testing.assert_close(unit(1e-2 * x + 3), expected, atol=1e-6, rtol=0)


# --- behaviours ------------------------------------------------------------------------------------------------------


def _masks(model: M3BSR, batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Items of the shallow and of the deep part of each row."""
    kept, shallow, deep = model._by_behaviour(batch)
    return [(h[s].tolist(), h[d].tolist()) for h, s, d in zip(kept.history, shallow, deep, strict=True)]


def test_views_are_shallow_and_likes_deep_whatever_is_hated() -> None:
    expected = [
        ([3], []),
        ([1, 2, 3, 5], [2, 5]),
        ([7, 7], [7, 7]),
        ([9], [4]),  # a like without a view
        ([8], []),  # items that were neither viewed nor liked are left out
        ([11, 6, 2, 1], []),  # unless the row shows nothing at all
    ]
    assert _masks(_model(), _batch()) == expected


def test_without_a_view_among_the_behaviours_what_is_not_deep_is_shallow() -> None:
    assert _masks(_model(names=("other", "like", "hate")), _batch())[:5] == [
        ([3], []), ([1, 3], [2, 5]), ([], [7, 7]), ([9], [4]), ([4, 8, 10], []),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [(), NAMES])
def test_on_one_behaviour_the_recent_half_is_deep_and_it_says_so(names: tuple[str, ...]) -> None:
    model = _model(replace(OPTIONS, use_behaviours=False), names)
    assert _masks(model, _batch()) == [
        ([3], [3]), ([1, 2, 3, 5], [3, 5]), ([7, 7], [7]), ([9, 4], [4]), ([4, 8, 10], [8, 10]),
        ([11, 6, 2, 1], [2, 1]),
    ]  # fmt: skip
    assert "M3BSR (single-behaviour)" in model.notes[0]
    assert _model().notes == ()


def test_named_behaviours_decide() -> None:
    model = _model(replace(OPTIONS, deep=("hate", "absent"), shallow=("like",)))
    assert _masks(model, _batch())[1] == ([2, 5], [3])


def test_a_dataset_without_a_deep_behaviour_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of this dataset's behaviours \(view, hate\) is deep.*model\.deep"):
        _model(names=("view", "hate"))


def test_missing_content_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"M3BSR needs item content .* visual: prepare it with"):
        M3BSR(OPTIONS, model_context(table=item_table(fields=("text",))))


# --- diffusion -------------------------------------------------------------------------------------------------------


def _two_parts() -> tuple[Part, Part]:
    """Two parts of different lengths; the second is empty in some rows."""
    batch = _batch()
    first, second = _parts(batch, _real(batch), batch.behaviours & LIKE != 0)
    return first, second


def _tokens(part: Part) -> Tensor:
    size = len(part.source)
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, HIDDEN, dtype=torch.float64, generator=generator).requires_grad_()


def _read(m: CrossAttention, x: Tensor, context: Sequence[Tensor]) -> Tensor:
    keys, values = zip(*(_linear(m.key_value, c).chunk(2) for c in context), strict=True)
    return _linear(m.out, attend(_linear(m.query, x), keys, values, HEADS))


@pytest.mark.usefixtures("layouts")
def test_cross_attention_reads_all_tokens_of_the_same_row() -> None:
    module, (one, two) = CrossAttention(HIDDEN, HEADS, 0.0).double(), _two_parts()
    randomise(module)
    x, context = _tokens(one), _tokens(two)
    rows = [[_read(module, t, c) for t in row] for row, c in zip(_rows(x, one), _rows(context, two), strict=True)]
    actual = _without_padding(module(x, one, context, two), one)
    assert_same(actual, _flat(rows, one), [x, context, *module.parameters()], 1e-9)


def _sinusoids(t: int) -> Tensor:
    half = HIDDEN // 2
    angle = [t * math.exp(-math.log(10_000) / half * i) for i in range(half)]
    return torch.tensor([math.cos(a) for a in angle] + [math.sin(a) for a in angle], dtype=torch.float64)


def _noise_of(m: NoisePredictor, x: Tensor, t: int, context: Sequence[Tensor]) -> Tensor:
    """One token's noise, by the formula."""
    norms = [(n.weight, n.bias, 1e-5) for n in (m.norm_input, m.norm_read)]
    x = layer_norm(x + _linear(m.time, _sinusoids(t)), *norms[0])
    read = layer_norm(x + _read(m.attention, x, context), *norms[1])
    return _linear(m.outer, _linear(m.inner, read).clamp(min=0))


def _denoiser() -> Denoiser:
    noise = KeyedNoise(4)
    module = Denoiser(NoisePredictor(HIDDEN, HEADS, STEPS, 0.0), Diffusion("linear", STEPS), noise, STREAMS).double()
    randomise(module)
    return module


def _alpha_bar(t: int) -> float:
    return math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / (STEPS - 1)) for s in range(t))


@pytest.mark.usefixtures("layouts")
def test_training_estimates_clean_tokens_from_one_noisy_step_of_every_row() -> None:
    module, (one, two) = _denoiser(), _two_parts()
    x, context = _tokens(one), _tokens(two)
    step = KeyedNoise(4).integers(one.key, 1, STEPS, STREAMS[0]).tolist()
    rows, errors = [], []
    contexts = _rows(context, two)
    for b, row in enumerate(_rows(x, one)):
        out, error = [], []
        for p, token in enumerate(row):
            key = one.key[b : b + 1] * LENGTH + p
            eps = KeyedNoise(4).normal(key, (HIDDEN,), STREAMS[1])[0].double()
            signal, spread = math.sqrt(_alpha_bar(step[b])), math.sqrt(1 - _alpha_bar(step[b]))
            state = signal * token + spread * eps
            predicted = _noise_of(module.predictor, state, step[b], contexts[b])
            error.append(((predicted - eps) ** 2).sum() / HIDDEN)
            out.append((state - spread * predicted) / signal)
        rows.append(out)
        errors.append(torch.stack(error).sum() / len(error))
    estimate, loss = module(x, one, context, two)
    leaves = [x, context, *module.parameters()]
    assert_same(_without_padding(estimate, one), _flat(rows, one), leaves, 1e-4)
    assert_same(loss, torch.stack(errors).sum() / len(errors), leaves, 1e-4)


@pytest.mark.parametrize("steps", [[8], [8, 6, 3]])
def test_evaluation_goes_down_the_posterior_means(steps: list[int]) -> None:
    """Bayes' rule for q(x_s | x_t, x_0), from the two Gaussians that it combines."""
    module, (one, two) = _denoiser(), _two_parts()
    x, context = _tokens(one).detach(), _tokens(two).detach()
    rows = []
    for b, row in enumerate(_rows(x, one)):
        out = []
        for p, token in enumerate(row):
            eps = KeyedNoise(4).normal(one.key[b : b + 1] * LENGTH + p, (HIDDEN,), STREAMS[1])[0].double()
            state = math.sqrt(_alpha_bar(steps[0])) * token + math.sqrt(1 - _alpha_bar(steps[0])) * eps
            for t, s in zip(steps, [*steps[1:], 0], strict=True):
                ab_t, ab_s = _alpha_bar(t), _alpha_bar(s)
                predicted = _noise_of(module.predictor, state, t, _rows(context, two)[b])
                x_0 = (state - math.sqrt(1 - ab_t) * predicted) / math.sqrt(ab_t)
                ratio = ab_t / ab_s
                prior = math.inf if s == 0 else 1 / (1 - ab_s)
                if s == 0:
                    state = x_0
                    continue
                precision = prior + ratio / (1 - ratio)
                state = (math.sqrt(ab_s) * x_0 * prior + math.sqrt(ratio) / (1 - ratio) * state) / precision
            out.append(state)
        rows.append(out)
    actual = _without_padding(module.reverse(x, one, context, two, steps), one)
    torch.testing.assert_close(actual, _flat(rows, one), atol=1e-4, rtol=1e-4)


# --- experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("layouts")
def test_experts_are_gated_with_what_both_behaviours_see_of_each_other() -> None:
    experts = InterestExperts(2, LENGTH, HIDDEN, 10, 2, HEADS, 0.0).double()
    randomise(experts)
    batch = _batch()
    masks = (_real(batch), batch.behaviours & LIKE != 0)
    shallow, deep = _parts(batch, *masks)
    tokens = [[_tokens(part) * scale for scale in (1.0, -0.3)] for part in (shallow, deep)]
    history = Layout.of(batch)
    specific = [e(x, shallow.layout) for e, x in zip(experts.shallow, tokens[0], strict=True)]
    specific += [e(x, deep.layout) for e, x in zip(experts.deep, tokens[1], strict=True)]
    sums = [[a + b for a, b in zip(*(_rows(x, p)[r] for x in xs), strict=True)] for xs, p in
            ((tokens[0], shallow), (tokens[1], deep)) for r in range(len(batch))]  # fmt: skip
    common_rows = torch.zeros(len(batch), LENGTH, HIDDEN, dtype=torch.float64)
    for b in range(len(batch)):
        seen, liked = sums[b], sums[len(batch) + b]
        places = [[p for p in range(LENGTH) if mask[b, p]] for mask in masks]
        for at, p in enumerate(places[0]):
            common_rows[b, p] += _read(experts.shallow_reads, seen[at], liked)
        for at, p in enumerate(places[1]):
            common_rows[b, p] += _read(experts.deep_reads, liked[at], seen)
    common = experts.common(history.flatten(common_rows), history)
    users = []
    for b in range(len(batch)):
        joined = torch.cat([*(s[b] for s in specific), common[b]])
        gate = torch.sigmoid(_linear(experts.gate[2], _linear(experts.gate[0], joined).clamp(min=0)))
        users.append(gate * common[b] + (1 - gate) * sum(s[b] for s in specific) / 4)
    user, said = experts(tokens[0], shallow, tokens[1], deep, history)
    assert_same(user, torch.stack(users), list(experts.parameters()), 1e-8)
    assert_same(said, torch.stack(specific, dim=1))


def test_mean_cosine_is_over_pairs_and_less_of_it_drives_experts_apart() -> None:
    x = torch.randn(3, 6, HIDDEN, dtype=torch.float64, requires_grad=True)
    pairs = [row[i] @ row[j] / (row[i].norm() * row[j].norm()) for row in x for i, j in combinations(range(6), 2)]
    assert_same(mean_cosine(x), torch.stack(pairs).mean(), [x])
    alike = (torch.ones(1, 2, HIDDEN) + 0.1 * torch.randn(1, 2, HIDDEN)).requires_grad_()
    mean_cosine(alike).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():  # the released code descends on its negative
        assert alike.grad is not None
        assert mean_cosine(alike - alike.grad) < mean_cosine(alike)


# --- the system ------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_rows_each_computed_alone() -> None:
    model, batch = _model(), _batch()
    together = model(batch)
    assert set(together) == set(model.loss_weights) == {"ranking", "contrast", "visual", "text", "behaviour"}
    for name, loss in together.items():
        alone = torch.stack([model(batch[b : b + 1])[name] for b in range(len(batch))]).mean()
        assert_same(loss, alone, list(model.parameters()), 1e-6)


def test_padding_is_never_read_and_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, of = _model(), _batch(), Layout.of
    packed, losses = model.user_vectors(batch), model(batch)
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, False)))
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    torch.testing.assert_close(model.user_vectors(batch), packed)
    torch.testing.assert_close(model(batch), losses)


@pytest.mark.usefixtures("layouts")
def test_content_is_denoised_under_ids_and_the_ids_of_views_under_those_of_likes() -> None:
    model, batch = _model(), _batch()
    batch = model._by_behaviour(batch)[0]
    shown = batch.behaviours & BOTH
    nothing = ~shown.any(dim=1, keepdim=True) & _real(batch)
    masks = (_real(batch), (shown & VIEW != 0) | nothing, shown & LIKE != 0)
    whole, shallow, deep = _parts(batch, *masks)
    rows, losses = Layout.of(batch).flatten(batch.history), {}
    ids = unit(model.item_embedding(rows))
    tokens = [ids]
    for at, name in enumerate(("visual", "text")):
        content = unit(_linear_rows(model.project[at], model.content[at](rows)))
        estimate, losses[name] = model.content_denoisers[at](content, whole, ids, whole)
        tokens.append(estimate)
    assert model.null is not None
    seen, liked = ([part.take(x, model.null[at]) for at, x in enumerate(tokens)] for part in (shallow, deep))
    assert isinstance(model.behaviour_denoiser, Denoiser)
    seen[0], losses["behaviour"] = model.behaviour_denoiser(seen[0], shallow, liked[0], deep)
    user, said = model.experts(seen, shallow, liked, deep, Layout.of(batch))
    actual: dict[str, Tensor] = {}
    vectors, experts = model._interest(_batch(), actual)
    leaves = list(model.parameters())
    assert_same(vectors, torch.stack([x / x.norm() for x in user]), leaves, 1e-8)
    assert_same(experts, said, leaves, 1e-8)
    for name, loss in losses.items():
        assert_same(actual[name], loss, leaves, 1e-8)
    contrast = mean_cosine(_linear_rows(model.contrast, said)) / 0.1
    assert_same(model(_batch())["contrast"], contrast, leaves, 1e-8)


def test_ranking_is_cross_entropy_of_unit_users_with_the_item_table() -> None:
    model, batch = _model(), _batch()
    user = model._interest(batch, {})[0]
    torch.testing.assert_close(user.norm(dim=1), torch.ones(len(batch), dtype=torch.float64))
    logits = user @ model.item_embedding.weight[1:].T
    picked = [torch.logsumexp(row, 0) - row[t - 1] for row, t in zip(logits, batch.target.tolist(), strict=True)]
    assert_same(model(batch)["ranking"], torch.stack(picked).mean(), list(model.parameters()), 1e-8)


@pytest.mark.parametrize("inference", ["estimate", "chain", "none"])
def test_user_vectors_depend_on_neither_batch_nor_target_nor_user(inference: str) -> None:
    model, batch = _model(), _batch()
    assert inference in model.inference_choices
    model.inference = inference
    vectors = model.user_vectors(batch)
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
    other = replace(batch, target=batch.target * 0, user=torch.full_like(batch.user, -1))
    assert torch.equal(model.user_vectors(other), vectors)


def test_evaluation_denoises_unless_told_otherwise() -> None:
    """The released code trains on denoised tokens and evaluates on raw ones; here that is one of the ways."""
    model, batch, vectors = _model(), _batch(), {}
    for way in model.inference_choices:
        model.inference = way
        vectors[way] = model.user_vectors(batch)
    assert model.inference_choices == ("estimate", "chain", "none")
    assert not torch.allclose(vectors["estimate"], vectors["none"])
    assert not torch.allclose(vectors["estimate"], vectors["chain"])
    bare = _model(replace(OPTIONS, denoise_content=False, denoise_behaviour=False))
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if "denoiser" not in k})
    assert bare.inference_choices == ("none",)
    assert torch.equal(bare.user_vectors(batch), vectors["none"])
    assert set(bare(batch)) == {"ranking", "contrast"}


@pytest.mark.parametrize("names", [(), NAMES])
def test_every_parameter_learns(names: tuple[str, ...]) -> None:
    model = M3BSR(OPTIONS, replace(model_context(), behaviours=names)).train()
    torch.stack(list(model(_batch()).values())).sum().backward()  # type: ignore[no-untyped-call]
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set()
    assert (model.null is not None) == bool(names), "with one behaviour no part is empty"
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_behaviours_change_what_is_recommended() -> None:
    model, batch = _model(), _batch()
    other = _batch([[VIEW] * len(row) for row in SHOWN])
    same = torch.isclose(model.user_vectors(batch), model.user_vectors(other)).all(dim=1)
    assert same.tolist() == [True, False, False, False, False, True]


def test_it_runs_in_half_precision() -> None:
    model = M3BSR(OPTIONS, replace(model_context(), behaviours=NAMES)).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(_batch())
        users = model.user_vectors(_batch())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert users.dtype == torch.float32
    assert model.item_vectors().shape == (ITEMS, HIDDEN)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 3}, "heads is 3"),
        ({"evaluation_step": 21}, r"evaluation_step is 21: it lies in 1\.\.steps \(20\)"),
        ({"chain": 9}, "chain is 9: it is at most evaluation_step"),
        ({"sampling": "best"}, "sampling is 'best'"),
        ({"contrast_temperature": 0.0}, "contrast_temperature is 0"),
        ({"lambda_diffusion": -1.0}, "lambda_diffusion is -1"),
        ({"dropout": 1.0}, "dropout is 1"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(OPTIONS, **changes)
