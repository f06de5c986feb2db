"""SSDRec's augmentation, denoising and schedules, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.contract import Clock
from models.nn.noise import KeyedNoise, Stream
from models.ssdrec import augment as ssdrec_augment
from models.ssdrec.augment import Augmented, BiLSTM, SelfAugmentation, draw_item, straight_through
from models.ssdrec.denoise import HierarchicalDenoising, filter_loss
from models.ssdrec.model import left_out, temperature
from tests.helpers.model_fixtures import (
    ITEMS,
    assert_same,
    layer_norm,
    make_batch,
    randomise,
)
from tests.models.ssdrec.test_graphs import HIDDEN, tables

ROWS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9]]


def _lstm_states(lstm: torch.nn.LSTM, inputs: list[Tensor]) -> list[Tensor]:
    """The states of an LSTM by definition; gates in the order input, forget, cell, output."""
    h = c = torch.zeros(HIDDEN, dtype=torch.float64)
    states = []
    for x in inputs:
        gates = lstm.weight_ih_l0 @ x + lstm.weight_hh_l0 @ h
        if lstm.bias:
            gates = gates + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, f, g, o = gates.split(HIDDEN)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return states


def _both_ways(lstm: BiLSTM, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return _lstm_states(lstm.ahead, inputs), _lstm_states(lstm.back, inputs[::-1])[::-1]


@pytest.fixture(params=["packed", "padded"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test twice: with the LSTM of a CPU, and with that of a GPU."""
    if request.param == "padded":
        monkeypatch.setattr(ssdrec_augment, "_packed", ssdrec_augment._padded)
    return str(request.param)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("bias", [False, True])
def test_both_directions_read_real_places_only(bias: bool) -> None:
    lstm = BiLSTM(HIDDEN, HIDDEN, bias).double()
    randomise(lstm)
    lengths = [3, 1, 5, 2]
    x = torch.randn(4, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    states = lstm(x, torch.tensor(lengths))
    expected = [_both_ways(lstm, list(x[b, :n])) for b, n in enumerate(lengths)]
    for way in range(2):
        actual = torch.cat([states[way][b, :n] for b, n in enumerate(lengths)])
        assert_same(actual, torch.stack([h for row in expected for h in row[way]]), [x, *lstm.parameters()])


def _rows(vectors: Tensor | None = None) -> Augmented:
    """`ROWS` padded to 7 with random vectors."""
    generator = torch.Generator().manual_seed(6)
    batch = make_batch(ROWS, length=7)
    real = (batch.history > 0)[:, :, None]
    if vectors is None:
        vectors = torch.randn(len(ROWS), 7, HIDDEN, generator=generator, dtype=torch.float64)
    return Augmented(batch.history, vectors * real, real[:, :, 0].double(), batch.length)


def _augmentation() -> SelfAugmentation:
    module = SelfAugmentation(HIDDEN, KeyedNoise(5)).double()
    randomise(module)
    return module


@pytest.mark.usefixtures("run")
def test_inconsistency_equals_its_definition() -> None:
    module, rows = _augmentation(), _rows()
    rows.vector.requires_grad_()
    start, end = module.ends.weight
    expected = []
    for b, items in enumerate(ROWS):
        x = list(rows.vector[b, : len(items)])
        ahead, back = _both_ways(module.lstm, [start, *x, end])
        one = torch.stack([torch.exp((e * ahead[i] * back[i + 2]).sum()) for i, e in enumerate(x)])
        cut = [e.clamp(-1, 1) for e in x]
        two = torch.stack([
            torch.exp(sum((c @ other for j, other in enumerate(cut) if j != i), torch.zeros(()).double()))
            for i, c in enumerate(cut)
        ])  # fmt: skip
        expected.append(F.pad(1 - one / one.sum() * two / two.sum(), (0, 7 - len(items)), value=1.0))
    leaves = [rows.vector, *module.parameters()]
    assert_same(module.inconsistency(rows.vector, rows.length)[0], torch.stack(expected), leaves)


def test_places_are_drawn_by_softmax_and_learn_by_the_noisy_one() -> None:
    score = torch.tensor([[0.3, 1.2, -0.5]], dtype=torch.float64, requires_grad=True)
    gumbel = KeyedNoise(1).gumbel(torch.arange(40_000), (3,), Stream.AUGMENTATION)
    place, one = ssdrec_augment._choose(score.expand(40_000, 3), gumbel, 0.7)
    share = place.bincount(minlength=3) / 40_000
    torch.testing.assert_close(share.double(), score.detach().softmax(1)[0], atol=0.01, rtol=0)
    soft = ((score + gumbel.double()) / 0.7).exp()
    expected = soft[torch.arange(40_000), place] / soft.sum(1)
    assert (one == 1).all()
    assert_same(one - one.detach(), expected - expected.detach(), [score])


@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_items_are_drawn_by_softmax_and_never_padding(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssdrec_augment, "_SLICE_BYTES_CPU", budget)
    item, _ = tables()
    query, draws = torch.randn(3, HIDDEN, dtype=torch.float64), 2000
    uniform = (torch.arange(draws) + 0.5) / draws
    p = torch.softmax(query @ item.detach()[1:].T, dim=1)
    with torch.no_grad():
        drawn, one = draw_item(query.repeat_interleave(draws, 0), item, uniform.repeat(3))
    assert (one == 1).all()
    counts = torch.stack([row.bincount(minlength=ITEMS) for row in drawn.view(3, draws)])
    assert not counts[:, 0].any()
    assert ((counts[:, 1:] / draws - p).abs() <= 1.01 / draws).all()


def test_a_drawn_item_learns_by_its_own_logit() -> None:
    item, _ = tables()
    query = torch.randn(4, HIDDEN, dtype=torch.float64, requires_grad=True)
    drawn, one = draw_item(query, item, torch.tensor([0.0, 0.3, 0.8, 1.0]))
    p = torch.softmax(query @ item[1:].T, dim=1).detach()[torch.arange(4), drawn - 1]
    expected = 1 + torch.stack([s * (1 - s) * (q @ item[i]) for s, q, i in zip(p, query, drawn, strict=True)])
    assert_same(one - one.detach(), expected - expected.detach(), [query, item])


def test_insertion_equals_insertion_into_lists() -> None:
    rows, item = _rows(), torch.randn(ITEMS, HIDDEN, dtype=torch.float64, requires_grad=True)
    place, grows = torch.tensor([4, 0, 1, 2]), torch.tensor([True, True, True, False])
    new = (torch.tensor([10, 11, 8, 7]), torch.tensor([6, 1, 2, 3]))
    share = [torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    actual = ssdrec_augment._insert(rows, place, grows, new, share, item)
    vectors, weights = [], []
    for b, items in enumerate(ROWS):
        ids, parts, ones = list(items), list(rows.vector[b, : len(items)]), [torch.ones((), dtype=torch.float64)] * 7
        ones = ones[: len(items)]
        if grows[b]:
            at = int(place[b])
            for offset, way in ((at + 1, 1), (at, 0)):
                ids.insert(offset, int(new[way][b]))
                parts.insert(offset, item[new[way][b]] * share[way][b])
                ones.insert(offset, share[way][b])
        padding = 7 - len(ids)
        assert actual.item[b].tolist() == ids + [0] * padding
        assert int(actual.length[b]) == len(ids)
        vectors.append(torch.stack([*parts, *[torch.zeros(HIDDEN).double()] * padding]))
        weights.append(torch.stack([*ones, *[torch.zeros(()).double()] * padding]))
    assert_same(actual.vector, torch.stack(vectors), [item, *share])
    assert_same(actual.weight, torch.stack(weights), share)


def test_kept_places_move_together() -> None:
    rows = _rows()
    keep = torch.rand(len(ROWS), 7, generator=torch.Generator().manual_seed(1)) > 0.4
    keep &= rows.item > 0
    moved = rows.compacted(keep)
    for b in range(len(ROWS)):
        kept = keep[b].nonzero().flatten()
        assert moved.item[b].tolist() == rows.item[b, kept].tolist() + [0] * (7 - len(kept))
        assert torch.equal(moved.vector[b, : len(kept)], rows.vector[b, kept])
        assert not moved.vector[b, len(kept) :].any()
        assert moved.weight[b].tolist() == [1.0] * len(kept) + [0.0] * (7 - len(kept))
        assert int(moved.length[b]) == len(kept)


def _within(part: list[int], whole: list[int]) -> bool:
    """Whether `part` is a subsequence of `whole`."""
    rest = iter(whole)
    return all(item in rest for item in part)


def test_augmentation_inserts_around_one_place_where_there_is_room_and_may_drop_one_of_the_three() -> None:
    module, item = _augmentation(), tables()[0]
    dropped = set()
    for key in range(40):
        rows = _rows()
        out = module(rows, item, torch.arange(len(ROWS)) + 10 * key, 0.5)
        assert torch.equal(out.weight, (out.item > 0).double())
        for b, items in enumerate(ROWS):
            got = out.item[b][out.item[b] > 0].tolist()
            assert len(got) == int(out.length[b])
            if len(items) > 5:
                assert got == items
            dropped.add(len(got) - len(items))
            one_gone = [items[:i] + items[i + 1 :] for i in range(len(items))]
            assert any(_within(part, got) for part in [items, *one_gone])
    assert dropped == {0, 1, 2}


def test_padding_takes_part_in_the_choice_of_a_place() -> None:
    """As released: a row of 3 in 50 is augmented about 3 times in 50."""
    module, item = _augmentation(), tables()[0]
    history = torch.zeros(3000, 50, dtype=torch.int64)
    history[:, :3] = torch.tensor([3, 5, 8])
    vector = torch.zeros(3000, 50, HIDDEN, dtype=torch.float64)
    rows = Augmented(history, vector, (history > 0).double(), torch.full((3000,), 3))
    with torch.no_grad():
        grown = module(rows, item, torch.arange(3000), 0.5).length > 3
    assert 0.03 < grown.double().mean() < 0.08


def _reference_denoising(
    module: HierarchicalDenoising, rows: list[int], item: Tensor, vector: Tensor, user: Tensor,
    gumbel: Tensor | None, tau: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    length, keeps, errors = item.shape[1], [], []
    for b, n in enumerate(rows):
        states = list(item[b, :n])
        for _ in range(2):
            states = [one + two for one, two in zip(*_both_ways(module.lstm, states), strict=True)]
        errors.append(sum(((s - e) ** 2).sum() for s, e in zip(states, item[b, :n], strict=True)) / n)
        weight, bias = module.mix.weight[:, :, 0], module.mix.bias
        assert bias is not None
        keep = []
        for p in range(n):
            mixed = bias[p] * torch.ones(HIDDEN, dtype=torch.float64)
            for q in range(n):
                mixed = mixed + weight[p, q] * states[q] + weight[p, length + q] * item[b, q]
            normal = layer_norm(vector[b, p], module.norm.weight, module.norm.bias, 1e-5)
            readout = torch.tanh(module.item.weight @ normal + module.user.weight @ user[b] + module.user.bias)
            levels = [torch.sigmoid(module.sequence_level.weight @ torch.relu(mixed)),
                      torch.sigmoid(module.item_level.weight @ readout)]  # fmt: skip
            flag = torch.ones((), dtype=torch.float64)
            for level, scores in enumerate(levels):
                noisy = scores if gumbel is None else scores + gumbel[b, level, :, p]
                soft = (noisy / tau).exp()[1] / (noisy / tau).exp().sum()
                flag = flag * straight_through((noisy[1] > noisy[0]).double(), soft)
            keep.append(1 - flag)
        if not any(float(k.detach()) for k in keep):
            keep[-1] = torch.ones((), dtype=torch.float64)
        keeps.append(torch.stack([*keep, *[torch.zeros(()).double()] * (length - n)]))
    return torch.stack(keeps), torch.stack(errors)  # type: ignore[arg-type]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("noisy", [False, True])
def test_denoising_equals_place_by_place(noisy: bool) -> None:
    module = HierarchicalDenoising(7, HIDDEN, 0.0, 0.0).double()
    generator = torch.Generator().manual_seed(8)
    randomise(module)
    lengths, draw = [len(r) for r in ROWS] * 4, lambda *shape: torch.randn(*shape, generator=generator).double()
    rows = len(lengths)
    item, vector, user = (
        x.requires_grad_() for x in (draw(rows, 7, HIDDEN), draw(rows, 7, HIDDEN), draw(rows, HIDDEN))
    )
    gumbel = KeyedNoise(2).gumbel(torch.arange(rows), (2, 2, 7), Stream.SELECTION).double() if noisy else None
    actual = module(item, vector, user, torch.tensor(lengths), gumbel, 0.8)
    expected = _reference_denoising(module, lengths, item, vector, user, gumbel, 0.8)
    assert 0 < float(actual[0].detach().sum()) < sum(lengths)
    for one, two in zip(actual, expected, strict=True):
        assert_same(one, two, [item, vector, user, *module.parameters()])


def test_a_row_of_noise_alone_keeps_its_last_item() -> None:
    module = HierarchicalDenoising(7, HIDDEN, 0.0, 0.0)
    gumbel = torch.zeros(4, 2, 2, 7)
    gumbel[:, :, 1] = 50.0
    x = torch.randn(4, 7, HIDDEN)
    keep, _ = module(x, x, x[:, 0], torch.tensor([len(r) for r in ROWS]), gumbel, 0.5)
    assert keep.argmax(1).tolist() == [len(r) - 1 for r in ROWS]
    assert keep.sum(1).tolist() == [1.0] * 4


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5])
def test_filter_loss_equals_item_by_item(dropped: float) -> None:
    generator = torch.Generator().manual_seed(3)
    item, user, negative = (
        torch.randn(*shape, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((4, 7), (4,), (4,))
    )
    known, total = torch.tensor([True, True, False, True]), []
    for b, items in enumerate(ROWS):
        losses = [-torch.log(torch.sigmoid(user[b] @ (item[b, p] - negative[b]))) for p in range(len(items))]
        losses = sorted(losses, key=lambda loss: loss.item())[: len(items) - int(dropped * len(items))]
        total.append(torch.stack(losses).sum() * known[b])
    actual = filter_loss(item, user, negative, torch.tensor([len(r) for r in ROWS]), known, dropped)
    assert_same(actual, torch.stack(total).mean(), [item, user, negative])


def test_schedules_equal_the_released_ones() -> None:
    shares = [left_out(Clock(epoch)) for epoch in range(1, 13)]
    assert shares == pytest.approx([*torch.linspace(0.2, 0, 10).tolist(), 0.0, 0.0], abs=1e-7)
    tau = 0.5
    for step in range(2000):
        if (step + 1) % 40 == 0:
            tau = max(0.001, tau * math.exp(-1e-3 * (step + 1)))
        assert temperature(Clock(1, step), 0.5, 0.001) == pytest.approx(tau)
