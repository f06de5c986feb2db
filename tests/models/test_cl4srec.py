"""CL4SRec: augmentations against list operations, InfoNCE against its definition, the whole loss row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.augment import MASK, Augment, cropped, masked, reordered
from models.cl4srec import CL4SRec
from models.contract import Batch
from models.errors import UserError
from models.losses import contrastive
from models.losses.contrastive import info_nce
from models.mealrec.model import MealRec
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.options.base import Similarity
from models.options.cl4srec import CL4SRecOptions
from models.options.mealrec import MealRecOptions
from models.options.sasrec import SASRecOptions
from models.sasrec import SASRec
from tests.helpers.model_fixtures import HISTORIES, ITEMS, assert_same, make_batch, model_context, randomise

HIDDEN, LONG = 6, 10
OPTIONS = CL4SRecOptions(hidden=HIDDEN, inner=8)
NO_DROPOUT = replace(OPTIONS, attention_dropout=0.0, hidden_dropout=0.0)
SHARES = st.floats(0, 1, allow_subnormal=False)


def _rows(count: int, length: int, width: int = LONG) -> tuple[Tensor, Tensor]:
    """`count` histories 1, 2, ..., length."""
    history = torch.arange(1, width + 1) * (torch.arange(width) < length)
    return history.expand(count, -1), torch.full((count,), length)


def _floor(share: float, length: int) -> int:
    return math.floor(share * length + 1e-9)


# ---- operators, against list operations on the same draws


def _crop(items: list[int], share: float, draw: list[float]) -> list[int]:
    kept = max(1, _floor(share, len(items)))
    start = min(range(len(items) - kept + 1), key=lambda p: draw[p])
    return items[start : start + kept]


def _mask(items: list[int], share: float, draw: list[float]) -> list[int]:
    count = _floor(share, len(items)) if len(items) > 1 else 0
    chosen = sorted(range(len(items)), key=lambda p: draw[p])[:count]
    return [MASK if p in chosen else item for p, item in enumerate(items)]


def _reorder(items: list[int], share: float, start_draw: list[float], order_draw: list[float]) -> list[int]:
    count = _floor(share, len(items))
    if count == 0:
        return items
    start = min(range(len(items) - count + 1), key=lambda p: start_draw[p])
    run = sorted(range(start, start + count), key=lambda p: order_draw[p])
    return items[:start] + [items[p] for p in run] + items[start + count :]


def _lists(history: Tensor, length: Tensor) -> list[list[int]]:
    """Histories as lists; asserts that only padding follows their end."""
    rows = [row[:n] for row, n in zip(history.tolist(), length.tolist(), strict=True)]
    assert all(not any(row[n:]) for row, n in zip(history.tolist(), length.tolist(), strict=True))
    return rows


@settings(deadline=None, max_examples=60)
@given(share=SHARES, seed=st.integers(0, 2**31))
def test_operators_equal_list_operations(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(1, LONG + 1)
    history = torch.randint(1, 50, (LONG, LONG), generator=generator) * (torch.arange(LONG) < lengths[:, None])
    one, two = torch.randn(2, LONG, LONG, generator=generator)
    items = _lists(history, lengths)
    draws = list(zip(items, one.tolist(), two.tolist(), strict=True))
    assert _lists(*cropped(history, lengths, share, one)) == [_crop(row, share, a) for row, a, _ in draws]
    assert _lists(*masked(history, lengths, share, one)) == [_mask(row, share, a) for row, a, _ in draws]
    assert _lists(*reordered(history, lengths, share, one, two)) == [_reorder(row, share, a, b) for row, a, b in draws]


@pytest.mark.parametrize(
    ("length", "crop", "mask", "reorder"), [(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 0, 1), (4, 2, 1, 2), (10, 6, 3, 6)]
)
def test_published_shares_touch_as_many_items_as_the_facts_say(length: int, crop: int, mask: int, reorder: int) -> None:
    history, lengths = _rows(500, length)
    draws = torch.randn(2, *history.shape, generator=torch.Generator().manual_seed(0))
    assert set(cropped(history, lengths, OPTIONS.crop, draws[0])[1].tolist()) == {crop}
    hidden = (masked(history, lengths, OPTIONS.mask, draws[0])[0] == MASK).sum(1)
    assert set(hidden.tolist()) == {mask}
    moved = (reordered(history, lengths, OPTIONS.reorder, *draws)[0] != history).sum(1)
    assert int(moved.max()) == (reorder if reorder > 1 else 0)


def _uniform(counts: Mapping[Any, int], outcomes: int) -> None:
    """Assert that all outcomes occur about equally often (within five standard deviations)."""
    total = sum(counts.values())
    expected = total / outcomes
    assert len(counts) == outcomes
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())


def test_every_run_mask_and_order_is_equally_likely() -> None:
    history, lengths = _rows(20_000, 4)
    draws = KeyedNoise(1).normal(torch.arange(20_000), (4, LONG), Stream.AUGMENTATION).unbind(1)
    _uniform(Counter(map(tuple, cropped(history, lengths, 0.6, draws[0])[0].tolist())), 3)
    _uniform(Counter(map(tuple, masked(history, lengths, 0.5, draws[1])[0].tolist())), 6)
    # runs of three of four items: two starts times six orders, of which the unchanged one comes from both
    found = Counter(map(tuple, reordered(history, lengths, 0.75, draws[2], draws[3])[0].tolist()))
    unchanged = found.pop(tuple(history[0].tolist()))
    both = found.pop((1, 3, 2, 4, *[0] * 6))  # swaps the two items that both runs share
    assert unchanged / both == pytest.approx(1.0, abs=0.1)
    _uniform(found, 8)
    assert unchanged / 2 == pytest.approx(sum(found.values()) / 8, rel=0.1)


# ---- the two views


def _augment(seed: int = 3) -> Augment:
    return Augment(OPTIONS.crop, OPTIONS.mask, OPTIONS.reorder, KeyedNoise(seed))


def _reference_views(batch: Batch, augment: Augment) -> list[list[list[int]]]:
    """Both views of every row as lists, from the same draws."""
    draws = augment.noise.normal(batch.key, (4, batch.history.shape[1]), Stream.AUGMENTATION).tolist()
    left_out = augment.noise.integers(batch.key, 0, 2, Stream.AUGMENTATION).tolist()
    views: list[list[list[int]]] = [[], []]
    for items, (crop, mask, run, order), absent in zip(
        _lists(batch.history, batch.length), draws, left_out, strict=True
    ):
        three = [_crop(items, augment.crop, crop), _mask(items, augment.mask, mask),
                 _reorder(items, augment.reorder, run, order)]  # fmt: skip
        views[0].append(three[(absent + 1) % 3])
        views[1].append(three[(absent + 2) % 3])
    return views


def _long_batch(rows: int) -> Batch:
    """Rows of every length from 1 to LONG, of distinct items."""
    return make_batch([list(range(1, 2 + row % LONG)) for row in range(rows)], LONG)


def test_views_equal_list_operations_and_are_of_two_different_operators() -> None:
    batch, augment = _long_batch(300), _augment()
    one, two = augment(batch)
    assert [_lists(*one), _lists(*two)] == _reference_views(batch, augment)
    left_out = augment.noise.integers(batch.key, 0, 2, Stream.AUGMENTATION).tolist()
    _uniform(Counter(left_out), 3)
    kinds = set()
    for items, first, second in zip(_lists(batch.history, batch.length), _lists(*one), _lists(*two), strict=True):
        if len(items) == LONG:
            kinds.add((_kind(first), _kind(second)))
    assert kinds == {("mask", "reorder"), ("reorder", "crop"), ("crop", "mask")}


def _kind(view: list[int]) -> str:
    return "crop" if len(view) < LONG else "mask" if MASK in view else "reorder"


def test_a_single_item_stays_as_it_is() -> None:
    batch = make_batch([[3], [7], [11]])
    for history, length in Augment(1.0, 1.0, 1.0, KeyedNoise(1))(batch):
        assert torch.equal(history, batch.history)
        assert torch.equal(length, batch.length)


def test_views_depend_on_seed_and_key_alone() -> None:
    batch, augment = _long_batch(40), _augment()
    whole = augment(batch)
    for row in (0, 7, 39):
        for (history, length), (alone, own) in zip(whole, augment(batch[row : row + 1]), strict=True):
            assert torch.equal(history[row], alone[0])
            assert torch.equal(length[row], own[0])
    assert not torch.equal(whole[0][0], _augment(seed=4)(batch)[0][0])
    assert not torch.equal(whole[0][0], augment(replace(batch, key=batch.key + 1))[0][0])


# ---- InfoNCE


def _by_definition(one: Tensor, two: Tensor, similarity: str, temperature: float) -> Tensor:
    """For every view: minus the logarithm of its partner's share among all other views."""
    views = [v / v.norm() if similarity == "cosine" else v for pair in zip(one, two, strict=True) for v in pair]
    losses = []
    for i, view in enumerate(views):
        rivals = [torch.exp(view @ other / temperature) for j, other in enumerate(views) if j != i]
        losses.append(-torch.log(torch.exp(view @ views[i ^ 1] / temperature) / torch.stack(rivals).sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("slice_rows", [32, 4])
def test_info_nce_equals_its_definition(
    similarity: Similarity, slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_SLICE_BYTES_CPU", 1)  # several slices, the last one smaller
    monkeypatch.setattr(contrastive, "_SLICE_ROWS", slice_rows)
    one, two = torch.randn(2, 7, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaves = [one.requires_grad_(), two.requires_grad_()]
    actual = info_nce(one, two, torch.arange(7), similarity, 0.4)
    assert_same(actual, _by_definition(one, two, similarity, 0.4), leaves, 1e-12)


def test_info_nce_counts_a_repeated_row_once() -> None:
    one, two = torch.randn(2, 5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    key = torch.tensor([4, 9, 4, 1, 9])
    leaves = [one.requires_grad_(), two.requires_grad_()]
    views = torch.stack([one, two], 1)
    losses = []
    for row in range(5):
        others = [other for other in (0, 1, 3) if other != row]
        for view in range(2):
            positive = views[row, view] @ views[row, 1 - view]
            logits = [positive, *(views[row, view] @ views[other, w] for other in others for w in range(2))]
            losses.append(torch.logsumexp(torch.stack(logits), 0) - positive)
    assert_same(info_nce(one, two, key, "dot", 1.0), torch.stack(losses).mean(), leaves, 1e-12)


def test_info_nce_of_one_row_is_zero() -> None:
    one, two = torch.randn(2, 1, HIDDEN, requires_grad=True).unbind(0)
    loss = info_nce(one, two, torch.zeros(1, dtype=torch.int64), "dot", 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_info_nce_stays_finite_and_float32_under_autocast() -> None:
    one = 40 * torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(one.bfloat16(), -one.bfloat16(), torch.arange(6), "dot", 0.01)
    plain = info_nce(one.bfloat16().float(), -one.bfloat16().float(), torch.arange(6), "dot", 0.01)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.equal(loss, plain)


# ---- the system


def _model(options: CL4SRecOptions = NO_DROPOUT) -> CL4SRec:
    model = CL4SRec(options, model_context()).double().train()
    randomise(model)
    return model


def _encode_alone(model: CL4SRec, items: list[int]) -> Tensor:
    """One view as a separate batch, with its tokens chosen one by one."""
    tokens = torch.stack([model.mask_token if item == MASK else model.item_embedding.weight[item] for item in items])
    row = make_batch([[1] * len(items)])
    layout = Layout.of(row, True)
    encoded: Tensor = model.encoder(tokens, layout)
    return encoded[0]


def _check_contrast() -> None:
    options = replace(NO_DROPOUT, mask=0.5)  # histories are short: .3 of three items would mask none
    model, batch = _model(options), make_batch(HISTORIES * 3)
    views = _reference_views(batch, model.augment)
    assert any(MASK in row for row in views[0] + views[1])
    one, two = (torch.stack([_encode_alone(model, items) for items in view]) for view in views)
    losses = model(batch)
    assert set(losses) == set(model.loss_weights) == {"ranking", "contrast"}
    assert_same(losses["contrast"], _by_definition(one, two, "dot", 1.0), list(model.parameters()), 1e-9)


def test_contrast_packed_equals_view_by_view() -> None:
    _check_contrast()


@pytest.mark.usefixtures("padded_layout")
def test_contrast_padded_equals_view_by_view() -> None:
    _check_contrast()


def _sasrec_of(model: CL4SRec) -> SASRec:
    sasrec = SASRec(SASRecOptions(HIDDEN, 8, attention_dropout=0.0, hidden_dropout=0.0), model_context()).double()
    sasrec.load_state_dict(model.state_dict(), strict=False)
    return sasrec


def test_ranking_and_user_vectors_are_those_of_sasrec_on_the_whole_history() -> None:
    model, batch = _model(), make_batch(HISTORIES)
    sasrec = _sasrec_of(model)
    leaves = [p for name, p in model.named_parameters() if name != "mask_token"]
    names = [name for name, _ in model.named_parameters() if name != "mask_token"]
    assert torch.equal(model(batch)["ranking"], sasrec(batch)["ranking"])
    mine = torch.autograd.grad(model(batch)["ranking"], leaves)
    theirs = torch.autograd.grad(sasrec(batch)["ranking"], [sasrec.get_parameter(name) for name in names])
    for one, two in zip(mine, theirs, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(model.eval().user_vectors(batch), sasrec.eval().user_vectors(batch))


def test_the_mask_is_no_item() -> None:
    model = _model()
    assert model.item_vectors().shape == (ITEMS, HIDDEN)
    before = model.item_vectors().clone()
    with torch.no_grad():
        model.mask_token.fill_(50.0)
    assert torch.equal(model.item_vectors(), before)


def test_without_contrast_it_trains_as_sasrec_does() -> None:
    options = replace(OPTIONS, lambda_contrast=0.0)
    torch.manual_seed(1)
    model = CL4SRec(options, model_context()).train()
    torch.manual_seed(1)
    sasrec = SASRec(SASRecOptions(HIDDEN, 8), model_context()).train()
    losses = []
    for system in (model, sasrec):
        torch.manual_seed(2)  # the same dropout
        losses.append(system(make_batch(HISTORIES)))
    assert set(losses[0]) == set(losses[1]) == set(model.loss_weights) == {"ranking"}
    assert torch.equal(losses[0]["ranking"], losses[1]["ranking"])


def test_every_parameter_learns() -> None:
    model = CL4SRec(replace(OPTIONS, mask=0.5), model_context()).train()
    losses = model(make_batch(HISTORIES * 2))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not model.item_embedding.weight.grad[0].any()  # type: ignore[index]


def test_histories_of_one_item_and_unknown_users_train() -> None:
    model = CL4SRec(OPTIONS, model_context()).train()
    batch = make_batch([[3], [5]])
    losses = model(replace(batch, user=torch.full_like(batch.user, -1)))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_mealrec_on_cl4srec_keeps_its_contrast() -> None:
    options = MealRecOptions(backbone="cl4srec", cl4srec=replace(NO_DROPOUT, lambda_contrast=0.3))
    model, batch = MealRec(options, model_context()).train(), make_batch(HISTORIES)
    losses = model(batch)
    assert set(model.loss_weights) == {"ranking", "contrast", "tcd", "npd"}
    assert set(losses) > set(model.loss_weights), "what the denoisers explain has no weight"
    assert model.loss_weights["contrast"] == 0.3
    assert torch.equal(losses["contrast"], model.backbone.auxiliary_losses(batch)["contrast"])
    assert model.similarity == "dot"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 1.1}, "crop is 1.1: it must be in 0..1"),
        ({"mask": -0.1}, "mask is -0.1"),
        ({"reorder": 2.0}, "reorder is 2.0"),
        ({"lambda_contrast": -1.0}, "lambda_contrast is -1.0: it must be 0 or more"),
        ({"contrast_temperature": 0.0}, "contrast_temperature is 0.0: it must be above 0"),
        ({"contrast_similarity": "euclid"}, "contrast_similarity is 'euclid': it must be dot or cosine"),
        ({"heads": 3}, "heads is 3"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        CL4SRecOptions(**options)  # type: ignore[arg-type]
    assert message in str(error.value)
