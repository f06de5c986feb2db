"""What MoRec and IISAN share: items are their content, users a causal encoder over it, candidates those of the batch.

There is no table of item embeddings, so an item that nobody has seen yet is ranked like any other.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from models.contract import Batch, ModelContext, SequenceModel
from models.losses.in_batch import InBatchSoftmax
from models.nn.cache import Caching
from models.nn.layout import Layout
from models.nn.transformer import CausalEncoder, init_weights

#: items encoded together where all of them are: bounds the content in memory (13 x 768 twice: 160 MB)
_BLOCK = 2048


class ContentModel(Caching, SequenceModel):
    """A recommender whose item vectors are made from content alone, on both sides of the dot product."""

    loss_weights = {"ranking": 1.0}  # noqa: RUF012 - read-only by contract

    def __init__(self, context: ModelContext, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.table = context.table
        self.encoder = CausalEncoder(context.max_length, hidden, 4 * hidden, layers, heads, dropout, dropout)
        self.encoder.apply(init_weights)
        self.in_batch = InBatchSoftmax(context.interactions, context.table.n_items)

    @abstractmethod
    def encode_items(self, row_n: Tensor) -> Tensor:
        """(n,) item rows -> (n, D), each from its own content alone."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        candidates = self.in_batch.candidates(batch)
        item_CD = self.encode_items(candidates.row)  # once each, however often they occur
        user_BD = self._encode(batch, item_CD, candidates.place(batch.history))
        return {"ranking": self.in_batch(user_BD, item_CD, candidates, batch)}

    def user_vectors(self, batch: Batch) -> Tensor:
        items = self.cached_value()  # an evaluation asks for the item vectors first; one request need not make them all
        if items is not None:
            return self._encode(batch, items, batch.history).float()
        row, place = torch.unique(batch.history, return_inverse=True)
        return self._encode(batch, self.encode_items(row), place).float()

    def item_vectors(self) -> Tensor:
        return self.cached(self._all_items)

    def _encode(self, batch: Batch, item_nD: Tensor, place_BL: Tensor) -> Tensor:
        """(B, D) from item vectors and where in them each item of the history is; padding may be anywhere."""
        layout = Layout.of(batch)
        token_ND = item_nD.index_select(0, layout.flatten(place_BL))
        return self.encoder(token_ND, layout)  # type: ignore[no-any-return]

    def _all_items(self) -> Tensor:
        rows = torch.arange(self.table.n_items, device=self.in_batch.log_share.device)
        return torch.cat([self.encode_items(block).float() for block in torch.split(rows, _BLOCK)])


def xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases of linear layers; use with `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
