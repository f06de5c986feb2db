"""MoRec: frozen content features in place of item ids (Yuan et al. 2023), in its two-stage form.

Written from the facts of its released code; docs/fidelity.md has choices and deviations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.content_model import ContentModel, xavier
from models.contract import ModelContext
from models.nn.content import ContentInput
from models.nn.dropout import Dropout
from models.options.morec import MoRecOptions


class FeatureEncoder(nn.Module):
    """Encodes one modality: a linear layer and GELU, then `depth` times dropout, a linear layer and GELU."""

    def __init__(self, content: ContentInput, hidden: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.content = content
        parts: list[nn.Module] = [nn.Linear(content.width[0], hidden), nn.GELU()]
        for _ in range(depth):
            parts += [Dropout(dropout), nn.Linear(hidden, hidden), nn.GELU()]
        self.network = nn.Sequential(*parts)

    def forward(self, row_n: Tensor) -> Tensor:
        """(n,) item rows -> (n, D)."""
        return self.network(self.content(row_n))  # type: ignore[no-any-return]


class MoRec(ContentModel):
    """The vector of an item is the sum of its encoded modalities."""

    def __init__(self, options: MoRecOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden, options.layers, options.heads, options.dropout)
        self.modalities = nn.ModuleList(
            FeatureEncoder(
                ContentInput(context.table, field, options.scale), options.hidden, options.depth, options.dropout
            )
            for field in options.needs
        )
        self.modalities.apply(xavier)

    def encode_items(self, row_n: Tensor) -> Tensor:
        return torch.stack([encode(row_n) for encode in self.modalities]).sum(0)
