"""IISAN and IISAN-Versa: towers state by state in float64, which states they read, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.contract import ItemTable
from models.errors import UserError
from models.iisan import IISAN, Adapter, IISANVersa, InterTower, IntraTower, SideNetwork, adapter_states, group_size
from models.options.base import SystemOptions
from models.options.iisan import IISANOptions, IISANVersaOptions
from models.systems import build
from models.tensor_table import TensorTable
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    MISSING,
    TEXT,
    VISUAL,
    assert_same,
    item_table,
    make_batch,
    model_context,
    randomise,
)

OPTIONS = IISANOptions(hidden=6, adapter=3)
VERSA = IISANVersaOptions(hidden=6, adapter=3, visual_adapter=4)


def _table(visual: tuple[int, int], text: tuple[int, int]) -> TensorTable:
    """Random layer states of these shapes; item `MISSING` has none."""
    generator = torch.Generator().manual_seed(1)
    present = torch.ones(ITEMS, dtype=torch.bool)
    present[[0, MISSING]] = False
    values = [torch.randn(ITEMS, *shape, generator=generator) * present[:, None, None] for shape in (visual, text)]
    return TensorTable(
        ITEMS, {"visual_layers": values[0], "text_layers": values[1]},
        {"visual_layers": present, "text_layers": present}, {},
    )  # fmt: skip


def _versa(table: ItemTable | None = None) -> IISANVersa:
    model = IISANVersa(VERSA, model_context(table=table))  # type: ignore[arg-type]
    model.double().eval()
    randomise(model)
    return model


def _iisan(states: int = 5) -> IISAN:
    model = IISAN(OPTIONS, model_context(table=_table((states, 4), (states, 4))))
    model.double().eval()
    randomise(model)
    return model


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Identity):
        return x
    assert isinstance(layer, nn.Linear)
    return layer.weight @ x + layer.bias


def _adapt(adapter: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(adapter, Adapter)
    inner = _linear(adapter.down, x)
    return x + _linear(adapter.up, torch.where(inner > 0, inner, 0 * inner))


def _gates(tower: IntraTower | InterTower) -> Tensor:
    return 1 / (1 + torch.exp(-tower.gate / 0.1))


def _intra(tower: IntraTower, states: Sequence[Tensor]) -> Tensor:
    s = torch.zeros_like(states[0])
    for g, adapter, h in zip(_gates(tower), tower.adapters, states, strict=True):
        s = _adapt(adapter, g * h + (1 - g) * s)
    return s


def _inter(tower: InterTower, visual: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
    s = torch.zeros(min(len(visual[0]), len(text[0])), dtype=torch.float64)
    for j, (g, adapter) in enumerate(zip(_gates(tower), tower.adapters, strict=True)):
        v, t = _linear(tower.visual[j], visual[j]), _linear(tower.text[j], text[j])
        s = _adapt(adapter, s + g * v + (1 - g) * t)
    return s


def _item(network: SideNetwork, item: int, visual_states: list[int], text_states: list[int]) -> Tensor:
    contents = []
    for content in (network.visual, network.text):
        values = content.table.gather(content.field, torch.tensor(item)).double()
        if item == MISSING:
            assert content.missing is not None
            values = values + content.missing
        contents.append(values)
    visual, text = [contents[0][s] for s in visual_states], [contents[1][s] for s in text_states]
    pairs = min(len(visual), len(text))
    towers = [
        _intra(network.visual_tower, visual),
        _intra(network.text_tower, text),
        _inter(network.inter_tower, visual[len(visual) - pairs :], text[len(text) - pairs :]),
    ]
    heads = [list(head.children()) for head in network.heads]
    joined = torch.cat([_linear(h[1], _linear(h[0], s)) for h, s in zip(heads, towers, strict=True)])
    return _linear(network.fuse, joined)


def _check_items(model: IISAN | IISANVersa, visual_states: list[int], text_states: list[int]) -> None:
    rows = torch.arange(1, ITEMS)
    expected = torch.stack([_item(model.items, item, visual_states, text_states) for item in rows.tolist()])
    assert_same(model.encode_items(rows), expected, list(model.items.parameters()), 1e-9)


def test_symmetric_items_equal_their_towers_state_by_state() -> None:
    _check_items(_iisan(), [0, 2, 4], [0, 2, 4])


@pytest.mark.parametrize(
    ("visual", "text", "visual_states", "text_states"),
    [
        ((5, 4), (5, 4), [0, 2, 4], [0, 2, 4]),
        ((5, 3), (4, 7), [0, 2, 4], [0, 1, 3]),
        ((9, 7), (3, 3), [0, 2, 4, 6, 8], [0, 2]),
        ((2, 5), (8, 4), [0, 1], [0, 1, 3, 5, 7]),
        ((4, 6), (1, 2), [0, 1, 3], [0]),
        ((1, 2), (1, 2), [0], [0]),
    ],
)
def test_asymmetric_items_equal_their_towers_state_by_state(
    visual: tuple[int, int], text: tuple[int, int], visual_states: list[int], text_states: list[int]
) -> None:
    _check_items(_versa(_table(visual, text)), visual_states, text_states)


def test_only_the_wider_encoder_is_projected() -> None:
    inter = _versa().items.inter_tower
    assert VISUAL < TEXT
    assert {type(layer) for layer in inter.visual} == {nn.Identity}
    assert {type(layer) for layer in inter.text} == {nn.Linear}
    assert all(isinstance(a, Adapter) and a.up.out_features == VISUAL for a in inter.adapters)


def test_published_encoders_get_the_published_states() -> None:
    assert adapter_states(13, 2) == [0, 2, 4, 6, 8, 10, 12]
    assert group_size(13, 6) == 2  # BERT-base, ViT-B
    assert adapter_states(33, group_size(33, 6)) == [0, 2, 8, 14, 20, 26, 32]  # Llama-7B
    assert adapter_states(7, group_size(7, 6)) == [0, 2, 4, 6]  # MiniLM


@pytest.mark.parametrize("states", range(1, 40))
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_states_are_distinct_and_hold_the_first_and_the_last(states: int, groups: int) -> None:
    chosen = adapter_states(states, group_size(states, groups))
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, states - 1)
    assert len(chosen) <= groups + 1
    assert len(set(torch.tensor(chosen[1:]).diff().tolist())) <= 1, "evenly spaced"


def test_gates_start_at_one_half_and_adapters_near_the_identity() -> None:
    model = IISAN(OPTIONS, model_context(table=_table((5, 4), (5, 4))))
    for tower in (model.items.visual_tower, model.items.text_tower, model.items.inter_tower):
        assert _gates(tower).tolist() == [0.5] * 3
        assert all(
            isinstance(a, Adapter) and a.down.weight.std() < 0.02 and not a.up.bias.any() for a in tower.adapters
        )


def test_unequal_encoders_are_refused_with_the_system_that_takes_them() -> None:
    with pytest.raises(UserError, match=r"5 states of width 6, and the title 4 states of width 7.* iisan-versa"):
        build("iisan", OPTIONS, model_context())


@pytest.mark.parametrize(("system", "options"), [("iisan", OPTIONS), ("iisan-versa", VERSA)])
def test_missing_layer_states_are_refused_with_how_to_make_them(system: str, options: SystemOptions) -> None:
    with pytest.raises(UserError, match=r"visual_layers: prepare it .*; text_layers: prepare it .*--layers"):
        build(system, options, model_context(table=item_table(fields=("visual", "text"))))


def test_every_parameter_learns_also_in_half_precision() -> None:
    for half in (False, True):
        for model in (IISANVersa(VERSA, model_context()), IISAN(OPTIONS, model_context(table=_table((5, 4), (5, 4))))):
            model.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(make_batch(HISTORIES))["ranking"]
            loss.backward()
            assert loss.dtype == torch.float32
            assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_user_vectors_depend_on_neither_batch_nor_target() -> None:
    model, batch = _versa(), make_batch(HISTORIES)
    with torch.no_grad():
        vectors = model.user_vectors(batch)
        for row in range(len(batch)):
            torch.testing.assert_close(model.user_vectors(batch[row : row + 1])[0], vectors[row])
        unknown = replace(batch, target=batch.target * 0, user=batch.user * 0 - 1)
        assert torch.equal(model.user_vectors(unknown), vectors)
        model.item_vectors()
        torch.testing.assert_close(model.user_vectors(batch), vectors)


def test_bad_options_are_refused() -> None:
    for bad in ("hidden", "adapter", "layers"):
        with pytest.raises(UserError, match=bad):
            IISANOptions(**{bad: 0})
        with pytest.raises(UserError, match=bad):
            IISANVersaOptions(**{bad: 0})
    with pytest.raises(UserError, match="every"):
        IISANOptions(every=0)
    with pytest.raises(UserError, match="groups"):
        IISANVersaOptions(groups=0)
