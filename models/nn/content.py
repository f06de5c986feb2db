"""Item content as model input, gathered from the item table; an item without content gets a learned vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contract import ItemTable
from models.options.base import ContentField


class ContentInput(nn.Module):
    """One content field by item row: (...,) item rows -> (..., *width). Padding gives zeros, and an item without this
    content gives a learned vector.

    If all items have the content, there is no learned vector. The content itself gets no gradient.
    """

    def __init__(self, table: ItemTable, field: ContentField) -> None:
        super().__init__()
        self.field: ContentField = field
        self.table = table
        self.width = table.widths[field]
        self.missing = nn.Parameter(torch.zeros(self.width)) if _some_missing(table, field) else None

    def forward(self, rows: Tensor) -> Tensor:
        values = self.table.gather(self.field, rows)
        if self.missing is None:
            return values
        absent = (rows != 0) & ~self.table.present(self.field, rows)
        return values + absent.view(*rows.shape, *(1,) * len(self.width)) * self.missing


def _some_missing(table: ItemTable, field: ContentField, block: int = 1 << 20) -> bool:
    """Whether any real item lacks the content. Reads in blocks, so that a memory-mapped table is not loaded whole."""
    return any(
        not bool(table.present(field, torch.arange(start, min(start + block, table.n_items))).all())
        for start in range(1, table.n_items, block)
    )
