"""Quantised histories: the straight-through sample against its Jacobian, and centres that become means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.errors import UserError
from models.nn.noise import KeyedNoise, Stream
from models.nn.quantise import SequenceQuantiser, codebook_loss, newest_last, oldest_first
from tests.helpers.model_fixtures import assert_same, randomise

ROWS, LENGTH, HIDDEN, CODES, TEMPERATURE = 7, 3, 4, 5, 0.4


def _quantiser() -> SequenceQuantiser:
    module = SequenceQuantiser(LENGTH, HIDDEN, CODES, TEMPERATURE).double()
    randomise(module)
    return module


def _histories() -> tuple[Tensor, Tensor]:
    """Random histories of every length with zeros at padding, and the mask of real positions."""
    real = torch.arange(LENGTH) < (1 + torch.arange(ROWS) % LENGTH)[:, None]
    x = torch.randn(ROWS, LENGTH, HIDDEN, dtype=torch.float64) * real[:, :, None]
    return x.requires_grad_(), real


def _logits(module: SequenceQuantiser, row: Tensor) -> list[Tensor]:
    flat = torch.cat([row[p] for p in range(LENGTH)])
    return [module.assign.weight[m] @ flat + module.assign.bias[m] for m in range(CODES)]


def test_evaluation_gives_the_centre_of_the_largest_logit() -> None:
    module, (x, _) = _quantiser(), _histories()
    expected = []
    for row in x:
        logits = [float(z.detach()) for z in _logits(module, row)]
        expected.append(module.codes[logits.index(max(logits))])
    assert_same(module(x, None), torch.stack(expected), [x, *module.parameters()])


def test_training_gives_a_hard_sample_with_the_gradient_of_the_soft_one() -> None:
    """Value: the centre with the largest logit + noise. Gradient: of sum_m p_m c_m, but for c only the chosen one."""
    module, (x, _) = _quantiser(), _histories()
    gumbel = KeyedNoise(1).gumbel(torch.arange(ROWS), (CODES,), Stream.CLUSTER).double()
    expected = []
    for row, noise in zip(x, gumbel, strict=True):
        perturbed = [(z + g) / TEMPERATURE for z, g in zip(_logits(module, row), noise, strict=True)]
        total = sum(torch.exp(z) for z in perturbed)
        best = max(range(CODES), key=lambda m, p=perturbed: float(p[m].detach()))  # type: ignore[misc]
        soft = torch.stack([torch.exp(z) / total * module.codes[m].detach() for m, z in enumerate(perturbed)]).sum(0)
        expected.append(module.codes[best] + soft - soft.detach())
    assert_same(module(x, gumbel), torch.stack(expected), [x, *module.parameters()])


def test_hard_samples_follow_the_softmax_of_the_logits() -> None:
    module, rows = _quantiser(), 40_000
    x = torch.randn(1, LENGTH, HIDDEN, dtype=torch.float64).expand(rows, -1, -1)
    gumbel = KeyedNoise(2).gumbel(torch.arange(rows), (CODES,), Stream.CLUSTER).double()
    with torch.no_grad():
        picked = torch.cdist(module(x, gumbel).flatten(1), module.codes.flatten(1)).argmin(dim=1)
        share = torch.stack(_logits(module, x[0])).softmax(0)
    error = (share * (1 - share) / rows).sqrt()
    assert ((torch.bincount(picked, minlength=CODES) / rows - share).abs() < 5 * error).all()


def test_codebook_loss_equals_loops_and_spares_the_histories() -> None:
    x, real = _histories()
    centre = torch.randn(ROWS, LENGTH, HIDDEN, requires_grad=True)
    rows = []
    for b in range(ROWS):
        terms = [(centre[b, p, d] - x[b, p, d].detach().float()) ** 2 for p in range(LENGTH) if real[b, p]
                 for d in range(HIDDEN)]  # fmt: skip
        rows.append(torch.stack(terms).sum() / len(terms))
    assert_same(codebook_loss(centre, x, real), torch.stack(rows).mean(), [centre, x], 1e-6)
    assert torch.autograd.grad(codebook_loss(centre, x, real), x, allow_unused=True)[0] is None


def test_descending_the_codebook_loss_moves_each_centre_to_the_mean_of_its_members() -> None:
    """The released code's result for each batch. A position of a centre is the mean over members with that position."""
    module, (x, real) = _quantiser(), _histories()
    with torch.no_grad():
        label = module.assign(x.flatten(1)).argmax(dim=1)
    optimiser = torch.optim.SGD([module.codes], lr=1.0)
    for _ in range(3000):
        optimiser.zero_grad()
        codebook_loss(module(x, None), x, real).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert len(set(label.tolist())) > 1
    for code in set(label.tolist()):
        for p in range(LENGTH):
            members = [
                (x[b, p].detach(), 1 / int(real[b].sum())) for b in range(ROWS) if label[b] == code and real[b, p]
            ]
            if members:  # a row's weight is spread over its positions
                mean = torch.stack([v * w for v, w in members]).sum(0) / sum(w for _, w in members)
                torch.testing.assert_close(module.codes[code, p].detach(), mean, rtol=1e-4, atol=1e-4)


def test_histories_are_moved_to_their_newest_item_and_back() -> None:
    x, real = _histories()
    length = real.sum(1)
    moved = newest_last(x, length)
    for row, each, n in zip(x, moved, length.tolist(), strict=True):
        assert torch.equal(each[LENGTH - n :], row[:n])
        assert not each[: LENGTH - n].any()
    assert torch.equal(oldest_first(moved, length), x)


def test_a_row_is_quantised_the_same_in_any_batch() -> None:
    module, (x, _) = _quantiser(), _histories()
    whole = module(x, None)
    for b in range(ROWS):
        assert torch.equal(module(x[b : b + 1], None)[0], whole[b])


def test_assignment_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module, x = SequenceQuantiser(LENGTH, HIDDEN, CODES), torch.randn(ROWS, LENGTH, HIDDEN)
    gumbel = torch.zeros(ROWS, CODES)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = module(x, gumbel)
        from_half = module(x.bfloat16(), None)
    assert autocast.dtype == from_half.dtype == torch.float32
    assert torch.equal(autocast, module(x, gumbel))


def test_one_code_serves_everybody() -> None:
    module = SequenceQuantiser(LENGTH, HIDDEN, 1)
    assert torch.equal(module(torch.randn(2, LENGTH, HIDDEN), None), module.codes.expand(2, -1, -1))


@pytest.mark.parametrize(("codes", "temperature", "name"), [(0, 0.1, "codes"), (2, 0.0, "temperature")])
def test_impossible_settings_are_refused(codes: int, temperature: float, name: str) -> None:
    with pytest.raises(UserError, match=name):
        SequenceQuantiser(LENGTH, HIDDEN, codes, temperature)


def test_gumbel_noise_has_its_distribution_and_is_keyed() -> None:
    keys = torch.arange(20_000)
    values = KeyedNoise(3).gumbel(keys, (2, 2), Stream.CLUSTER)
    assert torch.isfinite(values).all()
    error = math.pi / math.sqrt(6 * values.numel())
    assert values.mean().item() == pytest.approx(0.5772157, abs=5 * error)
    for quantile in (0.01, 0.5, 0.99):
        bound = -math.log(-math.log(quantile))
        spread = math.sqrt(quantile * (1 - quantile) / values.numel())
        assert (values < bound).float().mean().item() == pytest.approx(quantile, abs=5 * spread)
    assert torch.equal(KeyedNoise(3).gumbel(keys[7:9], (2, 2), Stream.CLUSTER), values[7:9])
    normal = KeyedNoise(3).normal(keys, (2, 2), Stream.CLUSTER)
    assert abs(torch.corrcoef(torch.stack([values.flatten(), normal.flatten()]))[0, 1].item()) < 5 / 80_000**0.5
