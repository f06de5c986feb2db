"""The sampled softmax: its sum of exponentials is right on average, exactly; it tends to the full softmax; any number
of workers get one result."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import Batch, TrainingInteractions
from models.losses.sampled import Sampler
from models.losses.softmax import full_softmax_cross_entropy, sampled_softmax_cross_entropy
from models.nn.noise import KeyedNoise, Stream
from models.options.ranking import RankingOptions, Sampling
from models.options.sasrec import SASRecOptions
from models.sasrec import SASRec
from tests.helpers.model_fixtures import HISTORIES, make_batch, model_context, randomise
from tests.helpers.tiny_runs import joined, run_ranks
from trainer.batches.plan import Plan

ITEMS, WIDTH = 5, 3
#: what each user watched: the items but the first of each are the targets of the training rows
WATCHED = [[3, 1, 1], [2, 1, 4]]
TARGETS = [item for items in WATCHED for item in items[1:]]


def _sampler(number: int, sampling: Sampling = "uniform", absent: tuple[int, ...] = ()) -> Sampler:
    offsets = torch.tensor([0, *itertools.accumulate(map(len, WATCHED))])
    allowed = torch.tensor([0 < item < ITEMS and item not in absent for item in range(ITEMS)])
    items = torch.tensor([item for items in WATCHED for item in items])
    return Sampler(TrainingInteractions(offsets, items), allowed, number, sampling, 3)


def _batch(targets: list[int], first_key: int = 0) -> Batch:
    return replace(make_batch([[1]] * len(targets), first_key=first_key), target=torch.tensor(targets))


def _vectors(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    user, item = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (rows, ITEMS))
    return user.requires_grad_(), item.requires_grad_()


def _loss(sampler: Sampler, batch: Batch, user: Tensor, item: Tensor) -> Tensor:
    sample = sampler(batch)
    sample = replace(sample, offset_C=sample.offset_C.double())
    return sampled_softmax_cross_entropy(user, item[sample.item_C], sample.own_B, sample)


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_sum_of_exponentials_is_right_on_average(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over every batch of two training rows whose first is given, and every draw of two items, with its probability.

    exp(loss + score of the target) is the estimated sum; its mean must be the sum over all items, in float64.
    """
    sampler = _sampler(2, sampling)
    user, item = _vectors(1)
    with torch.no_grad():
        user, item = user.detach(), item.detach()
        full = (user @ item[1:].T).exp().sum()
        for first, target in enumerate(TARGETS):
            others = [other for row, other in enumerate(TARGETS) if row != first]
            mean = 0.0
            for draws in itertools.product(range(sampler.total), repeat=2):
                monkeypatch.setattr(sampler.noise, "below", lambda *_, draws=draws: torch.tensor(draws))
                for other in others:
                    loss = 2 * _loss(sampler, _batch([target, other]), user.expand(2, -1), item)
                    second = _loss_of(sampler, _batch([target, other]), user, item, row=1)
                    mean += float((loss - second + user[0] @ item[target]).exp())
            mean /= sampler.total**2 * len(others)
            assert mean == pytest.approx(float(full), rel=1e-6)  # log E is stored in float32


def _loss_of(sampler: Sampler, batch: Batch, user: Tensor, item: Tensor, row: int) -> Tensor:
    """The loss of one row by definition, a loop over the candidates."""
    sample = sampler(batch)
    target = int(batch.target[row])
    total = (user[0] @ item[target]).exp()
    for candidate, offset in zip(sample.item_C.tolist(), sample.offset_C.tolist(), strict=True):
        if candidate != target:
            total = total + (user[0] @ item[candidate] + offset).exp()
    return total.log() - user[0] @ item[target]


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_it_tends_to_the_full_softmax_in_value_and_gradients(sampling: Sampling) -> None:
    batch = _batch([1, 2, 4])
    user, item = _vectors(3)
    full = full_softmax_cross_entropy(user, item, batch.target)
    expected = torch.autograd.grad(full, [user, item])
    off = []
    for number in (20, 200_000):
        loss = _loss(_sampler(number, sampling), batch, user, item)
        actual = torch.autograd.grad(loss, [user, item])
        off.append(max((a - e).abs().max().item() for a, e in zip((loss, *actual), (full, *expected), strict=True)))
    assert off[1] < 0.005 < off[0]


def test_each_occurrence_counts_by_its_expected_number() -> None:
    sampler = _sampler(4, "popularity", absent=(3,))
    sample = sampler(_batch([1, 2, 1]))
    assert sample.item_C[:3].tolist() == [1, 2, 1]
    assert len(sample.item_C) == 7
    assert sample.own_B.tolist() == [0, 1, 2]
    count = Counter(TARGETS)
    weight = {item: count[item] + 1 for item in (1, 2, 4)}
    for item, offset in zip(sample.item_C.tolist(), sample.offset_C.tolist(), strict=True):
        expected = 2 * count[item] / (len(TARGETS) - 1) + 4 * weight[item] / sum(weight.values())
        assert offset == pytest.approx(-math.log(expected), rel=1e-5)


def test_a_row_that_occurs_twice_counts_once() -> None:
    once, batch = _batch([1, 4]), _batch([1, 1, 4])
    twice = replace(batch, key=once.key[torch.tensor([0, 0, 1])])
    user, item = _vectors(1)
    sampler = _sampler(3)
    expected = _loss_of(sampler, once, user, item, row=1)
    torch.testing.assert_close(_loss_of(sampler, twice, user, item, row=2), expected)


def test_items_are_drawn_by_their_weights_and_the_absent_never() -> None:
    drawn = Counter(_sampler(30_000, "popularity", absent=(3,))(_batch([1])).item_C[1:].tolist())
    count = Counter(TARGETS)
    weight = {item: count[item] + 1 for item in (1, 2, 4)}
    assert set(drawn) == set(weight)
    for item, number in drawn.items():
        assert number / 30_000 == pytest.approx(weight[item] / sum(weight.values()), abs=0.015)


def test_a_step_has_its_own_draw_whatever_the_order_of_its_rows() -> None:
    sampler = _sampler(50)
    one, other = sampler(_batch([1, 2])), sampler(_batch([1, 2], first_key=1000))
    assert one.item_C[2:].tolist() != other.item_C[2:].tolist()
    turned = sampler(_batch([1, 2])[torch.tensor([1, 0])])
    assert turned.item_C[2:].tolist() == one.item_C[2:].tolist()


def test_numbers_below_a_bound_are_uniform_for_large_bounds_too() -> None:
    noise, key = KeyedNoise(1), torch.tensor(5)
    for size in (3, 2**33 + 1):
        drawn = noise.below(size, key, 30_000, Stream.CANDIDATES)
        assert int(drawn.min()) >= 0
        assert int(drawn.max()) < size
        third = (drawn // -(-size // 3)).bincount(minlength=3) / 30_000
        assert (third - 1 / 3).abs().max() < 0.015


OPTIONS = RankingOptions(untied=True, content="text", negatives=5, id_dropout=0.3, absent="left_out")


def _model() -> SASRec:
    options = SASRecOptions(hidden=6, inner=8, attention_dropout=0.0, hidden_dropout=0.0, ranking=OPTIONS)
    model = SASRec(options, model_context()).double().train()
    randomise(model)
    return model


def _on_rank(rank: int, world: int, folder: Path) -> None:
    """Losses and gradients, with a plan whose last step has fewer rows than workers."""
    torch.set_num_threads(1)
    found = {}
    with joined(rank, world, folder / "store"):
        model, batch = _model(), make_batch(HISTORIES)
        plan = Plan(len(batch), len(batch) - 1)
        for step in range(plan.steps):
            ((rows, weight),) = plan.share(step, rank, world, 1)
            total = weight * model(batch[torch.from_numpy(rows)])["ranking"]
            gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
            found[f"{step}.loss"] = total.detach()
            found[f"{step}.gradient"] = torch.cat([g.flatten() for g in gradients])
    save_file(found, folder / f"{rank}.safetensors")


def test_two_workers_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    run_ranks(_on_rank, 2, tmp_path)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    model, batch = _model(), make_batch(HISTORIES)
    plan = Plan(len(batch), len(batch) - 1)
    for step in range(plan.steps):
        loss = model(batch[torch.from_numpy(plan.positions(step))])["ranking"]
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        expected = {"loss": loss.detach(), "gradient": torch.cat([g.flatten() for g in gradients])}
        for key, value in expected.items():
            torch.testing.assert_close(sum(found[f"{step}.{key}"] for found in ranks), value)
