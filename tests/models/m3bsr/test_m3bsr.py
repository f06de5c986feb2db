"""The whole M3BSR: which items are shallow and deep, its losses row by row, and the properties of user vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.contract import Batch
from models.errors import UserError
from models.m3bsr.layers import Denoiser, mean_cosine, unit
from models.m3bsr.model import M3BSR
from models.nn.layout import Layout
from models.options.m3bsr import M3BSROptions
from models.systems import build
from tests.helpers.model_fixtures import (
    ITEMS,
    assert_same,
    item_table,
    model_context,
    randomise,
)
from tests.models.m3bsr.test_parts import BOTH, HEADS, HIDDEN, LIKE, SHOWN, STEPS, VIEW, batch_of, parts_of, real_of

OPTIONS = M3BSROptions(hidden=HIDDEN, inner=10, heads=HEADS, steps=STEPS, evaluation_step=8, chain=3, dropout=0.0)
NAMES = ("view", "like", "hate")


def _model(options: M3BSROptions = OPTIONS, names: tuple[str, ...] = NAMES) -> M3BSR:
    model = M3BSR(options, replace(model_context(), behaviours=names)).double().eval()
    randomise(model)
    return model


def _linear_rows(module: Any, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias  # type: ignore[no-any-return]


def _masks(model: M3BSR, batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The items of the shallow part and of the deep part of each row."""
    kept, shallow, deep = model._by_behaviour(batch)
    return [(h[s].tolist(), h[d].tolist()) for h, s, d in zip(kept.history, shallow, deep, strict=True)]


def test_views_are_shallow_and_likes_deep_whatever_is_hated() -> None:
    expected = [
        ([3], []),
        ([1, 2, 3, 5], [2, 5]),
        ([7, 7], [7, 7]),
        ([9], [4]),  # a like without a view
        ([8], []),  # items that were neither viewed nor liked are left out
        ([11, 6, 2, 1], []),  # unless the row has no behaviours at all
    ]
    assert _masks(_model(), batch_of()) == expected


def test_without_a_view_among_the_behaviours_what_is_not_deep_is_shallow() -> None:
    assert _masks(_model(names=("other", "like", "hate")), batch_of())[:5] == [
        ([3], []), ([1, 3], [2, 5]), ([], [7, 7]), ([9], [4]), ([4, 8, 10], []),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [(), NAMES])
def test_on_one_behaviour_the_recent_half_is_deep_and_it_says_so(names: tuple[str, ...]) -> None:
    model = _model(replace(OPTIONS, use_behaviours=False), names)
    assert _masks(model, batch_of()) == [
        ([3], [3]), ([1, 2, 3, 5], [3, 5]), ([7, 7], [7]), ([9, 4], [4]), ([4, 8, 10], [8, 10]),
        ([11, 6, 2, 1], [2, 1]),
    ]  # fmt: skip
    assert "M3BSR (single-behaviour)" in model.notes[0]
    assert _model().notes == ()


def test_named_behaviours_decide() -> None:
    model = _model(replace(OPTIONS, deep=("hate", "absent"), shallow=("like",)))
    assert _masks(model, batch_of())[1] == ([2, 5], [3])


def test_a_dataset_without_a_deep_behaviour_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of this dataset's behaviours \(view, hate\) is deep.*model\.deep"):
        _model(names=("view", "hate"))


def test_missing_content_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"m3bsr needs item content .* visual: prepare it with"):
        build("m3bsr", OPTIONS, model_context(table=item_table(fields=("text",))))


def test_losses_are_means_over_rows_each_computed_alone() -> None:
    model, batch = _model(), batch_of()
    together = model(batch)
    assert set(together) == set(model.loss_weights) == {"ranking", "contrast", "visual", "text", "behaviour"}
    for name, loss in together.items():
        alone = torch.stack([model(batch[b : b + 1])[name] for b in range(len(batch))]).mean()
        assert_same(loss, alone, list(model.parameters()), 1e-6)


def test_padding_is_never_read_and_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, of = _model(), batch_of(), Layout.of
    packed, losses = model.user_vectors(batch), model(batch)
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, False)))
    with torch.no_grad():
        model.item_embedding.weight[0] = 50.0
    torch.testing.assert_close(model.user_vectors(batch), packed)
    torch.testing.assert_close(model(batch), losses)


@pytest.mark.usefixtures("layouts")
def test_content_is_denoised_under_ids_and_the_ids_of_views_under_those_of_likes() -> None:
    model, batch = _model(), batch_of()
    batch = model._by_behaviour(batch)[0]
    shown = batch.behaviours & BOTH
    nothing = ~shown.any(dim=1, keepdim=True) & real_of(batch)
    masks = (real_of(batch), (shown & VIEW != 0) | nothing, shown & LIKE != 0)
    whole, shallow, deep = parts_of(batch, *masks)
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
    vectors, experts = model._interest(batch_of(), actual)
    leaves = list(model.parameters())
    assert_same(vectors, torch.stack([x / x.norm() for x in user]), leaves, 1e-8)
    assert_same(experts, said, leaves, 1e-8)
    for name, loss in losses.items():
        assert_same(actual[name], loss, leaves, 1e-8)
    contrast = mean_cosine(_linear_rows(model.contrast, said)) / 0.1
    assert_same(model(batch_of())["contrast"], contrast, leaves, 1e-8)


def test_ranking_is_cross_entropy_of_unit_users_with_the_item_table() -> None:
    model, batch = _model(), batch_of()
    user = model._interest(batch, {})[0]
    torch.testing.assert_close(user.norm(dim=1), torch.ones(len(batch), dtype=torch.float64))
    logits = user @ model.item_embedding.weight[1:].T
    picked = [torch.logsumexp(row, 0) - row[t - 1] for row, t in zip(logits, batch.target.tolist(), strict=True)]
    assert_same(model(batch)["ranking"], torch.stack(picked).mean(), list(model.parameters()), 1e-8)


@pytest.mark.parametrize("inference", ["estimate", "chain", "none"])
def test_user_vectors_depend_on_neither_batch_nor_target_nor_user(inference: str) -> None:
    model, batch = _model(), batch_of()
    assert inference in model.inference_choices
    model.inference = inference
    vectors = model.user_vectors(batch)
    for row in range(len(batch)):
        torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
    other = replace(batch, target=batch.target * 0, user=torch.full_like(batch.user, -1))
    assert torch.equal(model.user_vectors(other), vectors)


def test_evaluation_denoises_unless_told_otherwise() -> None:
    """The released code trains on denoised tokens and evaluates on raw ones; here this is one way of several."""
    model, batch, vectors = _model(), batch_of(), {}
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
    torch.stack(list(model(batch_of()).values())).sum().backward()  # type: ignore[no-untyped-call]
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set()
    assert (model.null is not None) == bool(names), "with one behaviour no part is empty"
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_behaviours_change_what_is_recommended() -> None:
    model, batch = _model(), batch_of()
    other = batch_of([[VIEW] * len(row) for row in SHOWN])
    same = torch.isclose(model.user_vectors(batch), model.user_vectors(other)).all(dim=1)
    assert same.tolist() == [True, False, False, False, False, True]


def test_it_runs_in_half_precision() -> None:
    model = M3BSR(OPTIONS, replace(model_context(), behaviours=NAMES)).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch_of())
        users = model.user_vectors(batch_of())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert users.dtype == torch.float32
    assert model.item_vectors().shape == (ITEMS, HIDDEN)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 3}, "heads is 3"),
        ({"evaluation_step": 21}, r"evaluation_step is 21: it must be in 1\.\.steps \(20\)"),
        ({"chain": 9}, "chain is 9: it must be at most evaluation_step"),
        ({"sampling": "best"}, "sampling is 'best'"),
        ({"contrast_temperature": 0.0}, "contrast_temperature is 0"),
        ({"lambda_diffusion": -1.0}, "lambda_diffusion is -1"),
        ({"dropout": 1.0}, "dropout is 1"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(OPTIONS, **changes)
