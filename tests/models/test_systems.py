"""Build systems by name, with their options and content; every mistake of a user is a UserError that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.contract import Baseline, SequenceModel
from models.errors import UserError
from models.nn.content import ContentInput
from models.options.base import ContentField
from models.options.mealrec import MealRecOptions
from models.options.sasrec import SASRecOptions
from models.systems import SYSTEMS, options_class, options_of
from models.tensor_table import TensorTable
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    MISSING,
    TEXT,
    context_for,
    item_table,
    make_batch,
    make_system,
    model_context,
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_built_from_its_defaults_and_keeps_the_contract(name: str) -> None:
    model, batch = make_system(name, {}, context_for(name)), make_batch(HISTORIES)
    if isinstance(model, Baseline):
        assert model.scores(batch).shape == (len(batch), ITEMS)
        return
    assert isinstance(model, SequenceModel)
    losses = model(batch)
    # what has no weight is a figure, of a part and with a name of its own
    assert {name for name in losses if "/" not in name} == set(model.loss_weights)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    model.eval()
    with torch.no_grad():
        assert model.user_vectors(batch).shape == (len(batch), model.item_vectors().shape[1])
        assert model.item_vectors().shape[0] == ITEMS
    assert model.inference == model.inference_choices[0]
    assert not any(p.is_complex() for p in model.parameters()), "ZeRO flattens parameters as reals"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sasrek", {}, "unknown model 'sasrek': did you mean 'sasrec'?"),
        ("bpr", {}, f"unknown model 'bpr': known: {', '.join(sorted(SYSTEMS))}"),
        ("sasrec", {"hiden": 8}, "unknown option model.hiden: did you mean 'hidden'?"),
        ("mealrec", {"tedrec": {"expert": 2}}, "unknown option model.tedrec.expert: did you mean 'experts'?"),
        ("mealrec", {"steps": 0}, "steps is 0: it must be at least 1"),
        ("mealrec", {"npd_start": 26}, "npd_start is 26: it must be in 0..25, the steps of the diffusion"),
        ("sasrec", {"hidden": 0}, "hidden is 0: it must be at least 1"),
        ("sasrec", {"layers": 0}, "layers is 0"),
        ("sasrec", {"heads": 3}, "heads is 3: it must divide the hidden width (64)"),
        ("sasrec", {"hidden_dropout": 1.0}, "hidden_dropout is 1.0: it must be in 0..1, 1 excluded"),
        ("tedrec", {"heads": 0}, "heads is 0"),
        ("tedrec", {"experts": 0}, "experts is 0"),
        ("tedrec", {"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ("mealrec", {"tedrec": {"adaptor_dropout": -0.1}}, "adaptor_dropout is -0.1"),
        ("mealrec", {"npd": {"heads": 7}}, "npd.heads is 7: it must divide the hidden width (300)"),
        ("mealrec", {"tcd": {"channels": (0, 24)}}, "channels is (0, 24)"),
        ("mealrec", {"tcd": {"decay": -1.0}}, "decay is -1.0"),
        ("mealrec", {"tcd": {"attention_heads": 0}}, "attention_heads is 0"),
        ("mealrec", {"mix": 1.5}, "mix is 1.5: it must be in 0..1"),
        ("mealrec", {"lambda_tcd": -0.1}, "lambda_tcd is -0.1: it must be 0 or more"),
    ],
)
def test_mistakes_are_named_with_the_nearest_valid_name(name: str, options: Mapping[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_system(name, options, model_context())
    assert message in str(error.value)


def test_options_are_parsed_through_nested_sections() -> None:
    parsed = options_of("mealrec", {"sasrec": {"hidden": 16}, "steps": 7})
    assert parsed == MealRecOptions(sasrec=SASRecOptions(hidden=16), steps=7)
    assert options_class("mealrec") is MealRecOptions
    assert options_of("mealrec", {}) == MealRecOptions()


def _leaves(options: Any) -> list[Any]:
    values = [getattr(options, f.name) for f in fields(options)]
    return [leaf for v in values for leaf in (_leaves(v) if is_dataclass(v) else [v])]


@pytest.mark.parametrize("name", SYSTEMS)
def test_options_are_plain_values(name: str) -> None:
    """Whether a YAML recipe can hold the value: numbers, strings, booleans and lists of them."""
    assert all(isinstance(leaf, bool | int | float | str | tuple) for leaf in _leaves(options_class(name)()))


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("tedrec", ["sequence", "visual"], ["text"]),
        ("mealrec", ["text"], ["sequence", "visual"]),
        ("mealrec", [], ["sequence", "visual", "text"]),
    ],
)
def test_content_that_the_dataset_lacks_is_named_with_what_to_run(
    name: str, has: list[ContentField], lacks: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        make_system(name, {}, model_context(table=item_table(fields=has)))
    message = str(error.value)
    assert all(f"{field}: prepare it with" in message for field in lacks)
    assert not any(f"{field}: prepare" in message for field in has)
    assert "--features DIR" in message


SCALED = [
    # a scale of each field that a system reads; every system but TCD is given what the encoder made, as in its release
    ("tedrec", {}, {"text": "raw"}),
    ("morec", {}, {"text": "raw", "visual": "raw"}),
    ("iisan", {}, {"text_layers": "raw", "visual_layers": "raw"}),
    ("iisan-versa", {}, {"text_layers": "raw", "visual_layers": "raw"}),
    ("dmmd4sr", {}, {"text": "raw", "visual": "raw"}),
    ("mmgcn", {}, {"text": "raw", "visual": "raw"}),
    ("m3bsr", {}, {"text": "raw", "visual": "raw"}),
    ("mealrec", {"backbone": "sasrec"}, {"sequence": "standard", "visual": "standard", "text": "raw"}),
    ("tedrec", {"scale": "unit"}, {"text": "unit"}),
]


@pytest.mark.parametrize(("name", "options", "scales"), SCALED, ids=[name for name, *_ in SCALED])
def test_a_forward_pass_reads_content_in_the_scale_of_the_options(
    name: str, options: dict[str, object], scales: dict[ContentField, str]
) -> None:
    context = context_for(name)
    model = make_system(name, options, context)
    read: dict[str, tuple[Tensor, Tensor]] = {}

    def note(part: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        assert isinstance(part, ContentInput)
        rows = given[0].flatten()
        read[part.field] = rows, result.detach().reshape(len(rows), -1)

    assert isinstance(model, SequenceModel)
    for part in model.modules():
        if isinstance(part, ContentInput):
            part.register_forward_hook(note)
    model(make_batch(HISTORIES))
    assert read.keys() == scales.keys()
    for field, scale in scales.items():
        rows, values = read[field]
        raw = context.table.gather(field, rows)
        mean, deviation = context.table.moments(field)
        scaled = {"raw": raw, "unit": raw / raw.norm(dim=-1, keepdim=True), "standard": (raw - mean) / deviation}[scale]
        real = (rows != 0) & (rows != MISSING)
        assert real.sum() > 3
        torch.testing.assert_close(values[real], scaled.flatten(1)[real], rtol=0, atol=0 if scale == "raw" else 1e-6)


def test_missing_content_is_a_learned_vector_and_padding_is_zero() -> None:
    content = ContentInput(item_table(), "text", "raw")
    rows = torch.tensor([[1, MISSING], [0, 2]])
    assert content.missing is not None
    with torch.no_grad():
        content.missing.fill_(3.0)
    values = content(rows)
    table = item_table()
    assert torch.equal(values[0, 0], table.gather("text", torch.tensor(1)))
    assert torch.equal(values[1, 1], table.gather("text", torch.tensor(2)))
    assert torch.equal(values[0, 1], torch.full((TEXT,), 3.0))
    assert not values[1, 0].any()
    (gradient,) = torch.autograd.grad(values.sum(), content.missing)
    assert torch.equal(gradient, torch.ones(TEXT)), "one item without content was read"


def test_without_missing_items_there_is_nothing_to_learn() -> None:
    present = torch.arange(ITEMS) > 0
    table = TensorTable(ITEMS, {"text": torch.randn(ITEMS, TEXT)}, {"text": present}, {})
    content = ContentInput(table, "text", "raw")
    assert list(content.parameters()) == []
    assert torch.equal(content(torch.tensor([3, 1])), table.gather("text", torch.tensor([3, 1])))


def test_table_answers_in_the_shape_of_the_rows_and_in_float32() -> None:
    half = TensorTable(
        3, {"sequence": torch.arange(12, dtype=torch.float16).view(3, 2, 2)}, {"sequence": torch.tensor([0, 1, 0]) > 0},
        {"sequence": "frames"},
    )  # fmt: skip
    rows = torch.tensor([[2, 1, 2]])
    assert half.gather("sequence", rows).tolist() == [[[[8, 9], [10, 11]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]]
    assert half.gather("sequence", rows).dtype == torch.float32
    assert half.present("sequence", rows).tolist() == [[False, True, False]]
    assert half.widths == {"sequence": (2, 2)}
    assert half.kinds == {"sequence": "frames"}
    assert half.n_items == 3
