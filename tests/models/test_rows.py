"""Which parameters have rows of items or users: those whose shape depends on how many there are, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.contract import ModelContext, SequenceModel, TrainingInteractions
from models.systems import SYSTEMS, options_class
from models.tensor_table import TensorTable
from tests.helpers.model_fixtures import ITEMS, context_for, make_system

CASES: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in SYSTEMS if options_class(name).trained),
    ("sasrec", {"ranking": {"untied": True}}),
    ("mmgcn", {"content": False}),
]


def larger(context: ModelContext) -> ModelContext:
    """Five more items, which nobody watched, and one more user."""
    table, more = context.table, 5
    rows = torch.cat([torch.arange(ITEMS), torch.ones(more, dtype=torch.int64)])
    values = {field: table.gather(field, rows) for field in table.widths}
    present = {field: table.present(field, rows) for field in table.widths}
    moments = {field: table.moments(field) for field in table.widths}
    grown = TensorTable(ITEMS + more, values, present, dict(table.kinds), moments)
    offsets, items = context.interactions.offsets, context.interactions.items
    watched = TrainingInteractions(torch.cat([offsets, offsets[-1:] + 2]), torch.cat([items, torch.tensor([1, 2])]))
    titles = [*context.titles, *["new"] * more]
    return replace(context, table=grown, interactions=watched, titles=titles)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_rows_of_items_and_users_are_those_that_are_named(name: str, options: dict[str, object]) -> None:
    context = context_for(name)
    small, large = make_system(name, options, context), make_system(name, options, larger(context))
    assert isinstance(small, SequenceModel)
    assert isinstance(large, SequenceModel)
    shapes = {each: parameter.shape for each, parameter in large.named_parameters()}
    grown = {each: shapes[each][0] - parameter.shape[0] for each, parameter in small.named_parameters()}
    assert {each for each, more in grown.items() if more == 5} == {n for n in shapes if n.endswith(small.item_rows)}
    assert {each for each, more in grown.items() if more == 1} == {n for n in shapes if n.endswith(small.user_rows)}
    assert {*grown.values()} <= {0, 1, 5}
