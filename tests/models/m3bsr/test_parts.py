"""M3BSR's parts against loops over rows and tokens: split of behaviours, conditional diffusions, interest experts."""

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
from models.m3bsr.layers import Denoiser, InterestExperts, NoisePredictor, PartAttention, mean_cosine, unit
from models.m3bsr.parts import Part, compact
from models.nn.diffusion import Diffusion
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from tests.helpers.model_fixtures import (
    HISTORIES,
    LENGTH,
    assert_same,
    attend,
    layer_norm,
    make_batch,
    randomise,
)

HIDDEN, HEADS, STEPS = 8, 2, 20
VIEW, LIKE, HATE = 1, 2, 4
BOTH = VIEW | LIKE
#: for HISTORIES: nothing deep, some deep, all deep, deep without a view, neither kind, no behaviours at all
SHOWN = [[VIEW], [VIEW, BOTH, VIEW | HATE, BOTH], [BOTH, BOTH], [VIEW, LIKE], [HATE, VIEW, 0], [0, 0, 0, 0]]
STREAMS = (Stream.BEHAVIOUR_STEP, Stream.BEHAVIOUR_NOISE)


def batch_of(shown: Sequence[Sequence[int]] = SHOWN) -> Batch:
    bits = torch.tensor([[*row, *[0] * (LENGTH - len(row))] for row in shown], dtype=torch.uint8)
    return replace(make_batch(HISTORIES), behaviours=bits)


def parts_of(batch: Batch, *keeps: Tensor) -> tuple[Part, ...]:
    return tuple(Part.of(batch, keep, Layout.of(batch)) for keep in keeps)


def real_of(batch: Batch) -> Tensor:
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


def _linear(module: Any, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias  # type: ignore[no-any-return]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=6, max_size=6), st.booleans())
def test_a_part_is_what_a_loop_over_the_history_keeps(keep: list[list[bool]], pack: bool) -> None:
    of = Layout.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))
        _check_part(keep)


def _check_part(keep: list[list[bool]]) -> None:
    batch = batch_of()
    mask = torch.tensor(keep) & real_of(batch)
    part, layout = parts_of(batch, mask)[0], Layout.of(batch)
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
    batch, keep = batch_of(), torch.tensor([[True, False, True, True]] * len(HISTORIES)) & real_of(batch_of())
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


def _two_parts() -> tuple[Part, Part]:
    """Two parts of different lengths; the second is empty in some rows."""
    batch = batch_of()
    first, second = parts_of(batch, real_of(batch), batch.behaviours & LIKE != 0)
    return first, second


def _tokens(part: Part) -> Tensor:
    size = len(part.source)
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, HIDDEN, dtype=torch.float64, generator=generator).requires_grad_()


def _read(m: PartAttention, x: Tensor, context: Sequence[Tensor]) -> Tensor:
    keys, values = zip(*(_linear(m.key_value, c).chunk(2) for c in context), strict=True)
    return _linear(m.out, attend(_linear(m.query, x), keys, values, HEADS))


@pytest.mark.usefixtures("layouts")
def test_cross_attention_reads_all_tokens_of_the_same_row() -> None:
    module, (one, two) = PartAttention(HIDDEN, HEADS, 0.0).double(), _two_parts()
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


@pytest.mark.usefixtures("layouts")
def test_experts_are_gated_with_what_both_behaviours_see_of_each_other() -> None:
    experts = InterestExperts(2, LENGTH, HIDDEN, 10, 2, HEADS, 0.0).double()
    randomise(experts)
    batch = batch_of()
    masks = (real_of(batch), batch.behaviours & LIKE != 0)
    shallow, deep = parts_of(batch, *masks)
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
    with torch.no_grad():  # the released code minimises its negative
        assert alike.grad is not None
        assert mean_cosine(alike - alike.grad) < mean_cosine(alike)
