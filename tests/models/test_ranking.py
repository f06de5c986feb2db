"""Scores of candidates and shortened histories against loops, with gradients; the defaults are the published form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ranking
from models.backbone import Backbone
from models.contract import Batch, ModelContext, TrainingInteractions
from models.errors import UserError
from models.mealrec.model import MealRec
from models.nn.noise import KeyedNoise, Stream
from models.options.cl4srec import CL4SRecOptions
from models.options.mealrec import MealRecOptions, TCDOptions
from models.options.ranking import RankingOptions
from models.options.sasrec import SASRecOptions
from models.options.tedrec import TedRecOptions
from models.ranking import Candidates, seen_items, shortened
from models.sasrec import SASRec
from models.systems import build
from models.tedrec import TedRec
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    MISSING,
    TEXT,
    assert_same,
    item_table,
    make_batch,
    model_context,
    randomise,
)

HIDDEN = 4
#: items that nobody watched
ABSENT = [7, 10]
SEEN = [item for item in range(1, ITEMS) if item not in ABSENT]


def _context() -> ModelContext:
    return replace(model_context(), interactions=TrainingInteractions(torch.tensor([0, 3, 9]), torch.tensor(SEEN)))


def _candidates(**options: Any) -> Candidates:
    return Candidates(RankingOptions(**options), _context(), HIDDEN).double()


def _shared() -> Tensor:
    return torch.randn(ITEMS, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def _content(field: str, item: int) -> Tensor:
    table = item_table()
    mean, deviation = table.moments(field)  # type: ignore[arg-type]
    value = (table.gather(field, torch.tensor(item)).double() - mean) / deviation  # type: ignore[arg-type]
    return torch.zeros_like(value) if item in (0, MISSING) else value / value.norm()


@pytest.mark.parametrize("block", [1, 5, 100])
@pytest.mark.parametrize("untied", [False, True])
def test_candidates_are_an_id_vector_plus_projected_unit_content(
    untied: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_BLOCK", block)
    model, shared = _candidates(untied=untied, content="text"), _shared()
    randomise(model)
    assert model.project is not None
    base = model.own if model.own is not None else shared
    expected = torch.stack([base[i] + model.project @ _content("text", i) for i in range(ITEMS)])
    assert model.project.shape == (HIDDEN, TEXT)
    assert_same(model(shared), expected, [shared, *model.parameters()])


def test_evaluations_of_the_same_weights_project_the_content_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shared = _candidates(content="text").eval(), _shared()
    reads, content = [], ranking._unit_blocks
    monkeypatch.setattr(ranking, "_unit_blocks", lambda *arguments: reads.append(1) or content(*arguments))
    with torch.no_grad():
        first = model(shared)
        assert torch.equal(model(shared), first)
        assert len(reads) == 1
        torch.testing.assert_close(model(shared + 1), first + 1)  # the table is no part of what is kept
        model.project.mul_(2)  # type: ignore[union-attr]
        torch.testing.assert_close(model(shared) - shared, 2 * (first - shared))
    assert len(reads) == 2


def test_projected_content_learns_under_bf16_autocast() -> None:
    gradients = []
    for half in (False, True):
        model, shared = _candidates(content="text").float(), _shared().float()
        torch.manual_seed(0)
        randomise(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            vectors = model(shared)
        vectors.float().square().sum().backward()  # type: ignore[no-untyped-call]
        assert model.project is not None
        gradients.append(model.project.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.05)


def test_the_defaults_are_the_shared_table_itself() -> None:
    model, shared = _candidates(), _shared()
    assert model(shared) is shared
    assert not list(model.parameters())
    assert not model.state_dict()
    assert model.trained(shared, torch.tensor([3]))[0] is shared


def test_absent_items_are_left_out_of_the_softmax_and_get_no_gradient() -> None:
    model, shared = _candidates(absent="left_out"), _shared()
    target = torch.tensor([1, 3, 11])
    rows, place = model.trained(model(shared), target)
    assert rows.tolist() == shared[[0, *SEEN]].tolist()
    assert rows[place].tolist() == shared[target].tolist()
    (gradient,) = torch.autograd.grad(rows[1:].sum(), shared)
    assert sorted(gradient.any(1).nonzero().squeeze(1).tolist()) == SEEN


def test_absent_items_have_no_id_vector_of_their_own_and_are_candidates_all_the_same() -> None:
    model = _candidates(untied=True, content="text", absent="left_out")
    assert model.own is not None
    assert not model.own[[0, *ABSENT]].any()
    assert model.own[SEEN].any(1).all()
    assert model(_shared())[ABSENT].any(1).all()


def test_everything_seen_leaves_nothing_out() -> None:
    model = Candidates(RankingOptions(absent="left_out"), model_context(), HIDDEN)
    seen = seen_items(model_context().interactions, ITEMS)
    assert (model.seen is None) == bool(seen[1:].all())


def test_id_dropout_leaves_the_content_of_some_items_alone_in_training_only() -> None:
    model, shared = _candidates(content="visual", id_dropout=0.5), _shared()
    whole = model.eval()(shared)
    content = whole - shared
    torch.manual_seed(0)
    model.train()
    dropped = 0
    for _ in range(20):
        rows = model(shared)
        alone = (rows - content).abs().amax(1) < 1e-12
        assert torch.allclose(rows[~alone], whole[~alone])
        dropped += int(alone[1:].sum())
    assert 0.35 < dropped / (20 * (ITEMS - 1)) < 0.65


def test_shortened_rows_keep_their_first_items() -> None:
    noise, long = KeyedNoise(1), make_batch([[3, 1, 2, 5]] * 4000)
    batch = shortened(long, 0.5, noise)
    count = Counter(batch.length.tolist())
    assert abs(count[4] - 2000) < 150
    assert all(abs(count[n] - 2000 / 3) < 100 for n in (1, 2, 3))
    for history, length in zip(batch.history.tolist(), batch.length.tolist(), strict=True):
        assert history == [3, 1, 2, 5][:length] + [0] * (4 - length)
    assert torch.equal(batch.target, long.target)


def test_shortening_does_not_depend_on_the_batch_and_spares_single_items() -> None:
    noise, batch = KeyedNoise(1), make_batch(HISTORIES)
    whole = shortened(batch, 1.0, noise)
    for row in range(len(batch)):
        alone = shortened(batch[row : row + 1], 1.0, noise)
        assert alone.history.tolist() == whole.history[row : row + 1].tolist()
    assert all(
        new == old if old == 1 else 1 <= new < old
        for new, old in zip(whole.length.tolist(), batch.length.tolist(), strict=True)
    )
    assert shortened(batch, 0.0, noise) is batch


def test_behaviours_are_cut_with_their_items() -> None:
    batch = make_batch(HISTORIES)
    batch = shortened(replace(batch, behaviours=torch.ones_like(batch.behaviours)), 1.0, KeyedNoise(2))
    assert torch.equal(batch.behaviours.bool(), batch.history != 0)


ALL = RankingOptions(untied=True, content="text", absent="left_out", shorten=0.6)


def _backbone(kind: str, options: RankingOptions = ALL) -> Backbone:
    torch.manual_seed(0)
    if kind == "sasrec":
        return SASRec(SASRecOptions(hidden=HIDDEN, inner=6, ranking=options), _context())
    similarity: Any = kind.removeprefix("tedrec-")
    return TedRec(TedRecOptions(hidden=HIDDEN, inner=6, experts=2, similarity=similarity, ranking=options), _context())


def _vector(model: Backbone, item: int) -> Tensor:
    """The vector of candidate `item`: its ID vector plus its projected content of unit length."""
    candidates = model.candidates
    vector = model.item_embedding.weight[item] if candidates.own is None else candidates.own[item]
    return vector if candidates.project is None else vector + candidates.project @ _content("text", item).to(vector)


def _score(model: Backbone, user_D: Tensor, item: int) -> Tensor:
    """The score by definition: the dot product, or cosine / temperature."""
    vector = _vector(model, item)
    if model.similarity == "cosine":
        return (user_D * vector).sum() / (user_D.norm() * vector.norm()) / model.temperature
    return (user_D * vector).sum()


def _loss(model: Backbone, user_BD: Tensor, targets: Sequence[int]) -> Tensor:
    """Mean over rows of -log of the target's share among the items that somebody watched."""
    rows = []
    for user_D, target in zip(user_BD, targets, strict=True):
        exponents = [torch.exp(_score(model, user_D, item)) for item in SEEN]
        rows.append(-torch.log(exponents[SEEN.index(target)] / torch.stack(exponents).sum()))
    return torch.stack(rows).mean()


def _cut(batch: Batch, share: float) -> list[list[int]]:
    """The histories of a training step of a backbone over `_context`, row by row."""
    histories = []
    for key, length, items in zip(batch.key, batch.length.tolist(), batch.history.tolist(), strict=True):
        picked, cut = KeyedNoise(_context().seed).uniform(key[None], (2,), Stream.SHORTENING)[0].tolist()
        kept = 1 + int(cut * (length - 1)) if picked < share and length > 1 else length
        histories.append(items[:kept])
    return histories


@pytest.mark.parametrize("kind", ["sasrec", "tedrec-dot", "tedrec-cosine"])
def test_ranking_loss_is_cross_entropy_of_the_items_seen_in_training(kind: str) -> None:
    model = _backbone(kind).double()
    user = torch.randn(3, HIDDEN, dtype=torch.float64).requires_grad_()
    targets = [1, 4, 11]
    rows = replace(make_batch([[1]] * 3), target=torch.tensor(targets))
    loss = model.ranking_loss(user, rows)
    leaves = [user, *model.candidates.parameters()]
    assert_same(loss, _loss(model, user, targets), leaves)


@pytest.mark.parametrize("kind", ["sasrec", "tedrec-cosine"])
def test_a_step_reads_the_shortened_rows(kind: str) -> None:
    model, batch = _backbone(kind).eval(), make_batch(HISTORIES)
    cut = _cut(batch, 0.6)
    assert any(1 <= len(short) < len(whole) for short, whole in zip(cut, HISTORIES, strict=True))
    assert any(len(short) == len(whole) > 1 for short, whole in zip(cut, HISTORIES, strict=True))
    user = model.encode(make_batch(cut))
    expected = _loss(model, user, SEEN[:6])
    torch.testing.assert_close(model(replace(batch, target=torch.tensor(SEEN[:6])))["ranking"], expected)


def test_mealrec_reads_the_shortened_rows_and_ranks_the_candidates() -> None:
    def model_of(shorten: float) -> MealRec:
        options = MealRecOptions(
            backbone="sasrec", sasrec=SASRecOptions(hidden=HIDDEN, inner=6, ranking=replace(ALL, shorten=shorten)),
            tcd=TCDOptions(channels=(8, 16)), steps=3,
        )  # fmt: skip
        torch.manual_seed(0)
        return MealRec(options, _context()).eval()

    def loss(model: MealRec, histories: Sequence[Sequence[int]]) -> Tensor:
        value: Tensor = model(replace(make_batch(histories), target=torch.tensor(SEEN[:6])))["ranking"]
        return value

    model = model_of(0.6)
    vectors = torch.stack([_vector(model.backbone, item) for item in range(1, ITEMS)])
    torch.testing.assert_close(model.item_vectors()[1:], vectors)
    torch.testing.assert_close(loss(model, HISTORIES), loss(model_of(0.0), _cut(make_batch(HISTORIES), 0.6)))


@pytest.mark.parametrize("backbone", ["sasrec", "cl4srec", "tedrec"])
def test_a_sample_of_thousands_gives_mealrec_the_loss_of_all_items_in_bf16_too(backbone: Any) -> None:
    losses = []
    for negatives in (0, 20_000):
        ranking = RankingOptions(content="text", negatives=negatives)
        sasrec: Any = {"hidden": HIDDEN, "inner": 6, "ranking": ranking}
        options = MealRecOptions(
            backbone=backbone, sasrec=SASRecOptions(**sasrec), cl4srec=CL4SRecOptions(**sasrec),
            tedrec=TedRecOptions(experts=2, **sasrec), tcd=TCDOptions(channels=(8, 16)), steps=3,
        )  # fmt: skip
        torch.manual_seed(0)
        model = MealRec(options, model_context()).eval()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(make_batch(HISTORIES))["ranking"])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="id_dropout"):
        RankingOptions(id_dropout=0.2)
    with pytest.raises(UserError, match="shorten"):
        RankingOptions(shorten=1.2)
    with pytest.raises(UserError, match="negatives"):
        RankingOptions(negatives=-1)
    with pytest.raises(UserError, match="text"):
        build("sasrec", SASRecOptions(ranking=ALL), model_context(table=item_table(fields=("visual",))))


def test_an_identity_filter_passes_the_ids() -> None:
    torch.manual_seed(0)
    model = TedRec(TedRecOptions(hidden=HIDDEN, inner=6, experts=2, filter_start="identity"), model_context())
    item = torch.randn(2, 4, HIDDEN)
    fused = model.fusion(item, torch.zeros(2, 4, HIDDEN))
    assert (fused - item).norm() < 0.2 * item.norm()
