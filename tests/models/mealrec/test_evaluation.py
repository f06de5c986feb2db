"""MealRec at evaluation: every way of using the denoisers, as equations; what user vectors depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.errors import UserError
from models.mealrec.model import MealRec
from models.nn.diffusion import betas
from models.nn.noise import KeyedNoise, Stream
from models.options.mealrec import MealRecOptions
from tests.helpers.model_fixtures import HISTORIES, make_batch
from tests.models.mealrec.test_mealrec import (
    HIDDEN,
    SEED,
    SMALL,
    T,
    _context,
    _corrupt,
    _direction,
    _last,
    _length,
    _model,
    _refined,
)

ALL_WAYS = ("tcd=direct npd=direct", "tcd=direct npd=chain", "tcd=chain npd=direct", "tcd=chain npd=chain")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _chain(state: Tensor, start: int, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Posterior means by DDPM's one-step formula."""
    beta = [0.0, *betas("linear", T).tolist()]
    for t in range(start, 0, -1):
        before, now = math.prod(1 - b for b in beta[:t]), math.prod(1 - b for b in beta[: t + 1])
        clean = predict(state, t)
        state = (math.sqrt(before) * beta[t] * clean + math.sqrt(1 - beta[t]) * (1 - before) * state) / (1 - now)
    return state


def _reference_vectors(model: MealRec, way: str) -> Tensor:
    options, noise, batch = model.options, KeyedNoise(SEED), make_batch(HISTORIES)
    rows = len(batch)
    z, text = _last(model, "sequence"), _last(model, "text")
    if options.use_tcd:
        z, context = model.temporal(z), torch.stack([_context(model, h) for h in HISTORIES])
        if "tcd=direct" in way:
            first = torch.ones(rows, dtype=torch.int64)
            z = _refined(model, z, first, context)
        else:
            start = options.tcd_start or T
            noisy = _corrupt(z, torch.full((rows,), start), noise.normal(batch.key, z.shape[1:], Stream.TCD_CHAIN))
            steps = {t: torch.full((rows,), t) for t in range(1, start + 1)}
            z = _chain(noisy, start, lambda s, t: _refined(model, s, steps[t], context))
    encoded = model.backbone.encode(batch)
    x = state = _direction(encoded)
    if "npd=chain" in way:
        start = options.npd_start or T
        state = _corrupt(x, torch.full((rows,), start), noise.normal(batch.key, (HIDDEN,), Stream.NPD_CHAIN))
        estimate = _chain(state, start, lambda s, _: _direction(s + model.preference(s, z, text)))
    else:
        estimate = _direction(state + model.preference(state, z, text))
    return _length(encoded) * ((1 - options.mix) * estimate + options.mix * x)


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({}, ALL_WAYS),
        ({"backbone": "sasrec", "mix": 0.4}, ALL_WAYS),
        ({"tcd_start": 2, "npd_start": 3}, ALL_WAYS),
        ({"tcd_sampling": "chain", "npd_sampling": "direct"}, ("tcd=chain npd=direct",)),
        ({"use_tcd": False}, ("tcd=none npd=direct", "tcd=none npd=chain")),
        ({"use_npd": False}, ("tcd=direct npd=none", "tcd=chain npd=none")),
        ({"use_tcd": False, "use_npd": False}, ("tcd=none npd=none",)),
    ],
)
def test_user_vectors_equal_the_equations_in_every_way(options: dict[str, Any], ways: tuple[str, ...]) -> None:
    model = _model(**options)
    seen: list[Tensor] = []
    assert model.inference_choices == ways
    assert model.inference == ways[0]
    for way in ways:
        model.inference = way
        vectors = model.user_vectors(make_batch(HISTORIES))
        torch.testing.assert_close(vectors, _reference_vectors(model, way), rtol=1e-3, atol=1e-4)
        assert all((vectors - other).abs().max() > 1e-3 for other in seen), f"{way} is like another way"
        seen.append(vectors)


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("backbone", ["sasrec", "tedrec"])
def test_user_vectors_are_the_same_alone_and_in_any_batch(backbone: str, way: str) -> None:
    model, batch = _model(backbone=backbone), make_batch(HISTORIES)
    model.inference = way
    vectors = model.user_vectors(batch)
    assert vectors.shape == (len(batch), HIDDEN)
    assert vectors.dtype == torch.float32
    assert torch.equal(model.user_vectors(batch), vectors)
    assert torch.equal(model.user_vectors(replace(batch, target=batch.target * 0)), vectors)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(model.user_vectors(batch[order]), vectors[order], rtol=1e-4, atol=1e-5)
    parts = torch.cat([model.user_vectors(batch[part]) for part in (slice(0, 1), slice(1, 6))])
    torch.testing.assert_close(parts, vectors, rtol=1e-4, atol=1e-5)


def test_only_chains_draw_noise() -> None:
    """Direct calls only depend on the history; a chain also depends on the user's key."""
    model, batch = _model(), make_batch(HISTORIES)
    other = replace(batch, key=batch.key + 1)
    for way in ALL_WAYS:
        model.inference = way
        assert torch.equal(model.user_vectors(batch), model.user_vectors(other)) == ("chain" not in way)


def test_items_are_ranked_by_the_backbones_own_table_and_rule() -> None:
    for backbone, similarity in (("sasrec", "dot"), ("tedrec", "cosine")):
        model = _model(backbone=backbone)
        assert model.similarity == similarity
        assert torch.equal(model.item_vectors(), model.backbone.item_embedding.weight)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"tcd_start": T + 1}, {"npd_start": -1}], ids=["no steps", "start after T", "negative"]
)
def test_impossible_diffusions_are_refused_by_name(wrong: dict[str, int]) -> None:
    name = next(iter(wrong))
    with pytest.raises(UserError, match=rf"{name} is {wrong[name]}"):
        replace(SMALL, **wrong)  # type: ignore[arg-type]
    assert MealRecOptions(steps=T, tcd_start=T).tcd_start == T
