"""Item content as model input, gathered from the item table and scaled; without content, a learned vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import ItemTable
from models.options.base import ContentField, Scale


class ScaledContent(nn.Module):
    """One content field by item row: (...,) item rows -> (..., *width); padding and items without content give zeros.

    scale: "raw" leaves the encoder's vectors as they are; "unit" divides each vector by its length; "standard" takes
    the mean of every dimension off, and divides by its deviation, both over the items of the training rows.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, table: ItemTable, field: ContentField, scale: Scale) -> None:
        super().__init__()
        self.field: ContentField = field
        self.table = table
        self.scale = scale
        self.width = table.widths[field]
        if scale == "standard":
            for name, value in table.moments(field)._asdict().items():
                # not in checkpoints: a run reads them from its dataset, and a recommender from its export
                self.register_buffer(name, value.clone(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        values = self.table.gather(self.field, rows)
        if self.scale == "raw":
            return values
        if self.scale == "unit":
            return F.normalize(values, dim=-1)
        there = self.table.present(self.field, rows)
        return (values - self.mean) / self.deviation * there.view(*rows.shape, *(1,) * len(self.width))


class ContentInput(ScaledContent):
    """As ScaledContent, but an item without this content gives a learned vector.

    If all items have the content, there is no learned vector. The content itself gets no gradient.
    """

    def __init__(self, table: ItemTable, field: ContentField, scale: Scale) -> None:
        super().__init__(table, field, scale)
        self.missing = nn.Parameter(torch.zeros(self.width)) if _some_missing(table, field) else None

    def forward(self, rows: Tensor) -> Tensor:
        values = super().forward(rows)
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
