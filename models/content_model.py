"""The base of MoRec and IISAN: item vectors come from content, user vectors from a causal encoder over item vectors.

The candidates in training are the items of the batch. There is no table of item embeddings, so an item without any
interaction is ranked like any other.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, SequenceModel
from models.losses.in_batch import InBatchSoftmax
from models.nn.cache import Caching
from models.nn.layout import Layout
from models.nn.transformer import CausalEncoder, init_weights

#: number of items encoded at a time: limits the memory for content (160 MB for two fields of 13 x 768)
_BLOCK = 2048


class ContentModel(Caching, SequenceModel):
    """A recommender whose item vectors are made from content alone, in histories and as candidates."""

    loss_weights = {"ranking": 1.0}  # noqa: RUF012 - read-only by contract

    def __init__(self, context: ModelContext, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.table = context.table
        self.encoder = CausalEncoder(context.max_length, hidden, 4 * hidden, layers, heads, dropout, dropout)
        self.encoder.apply(init_weights)
        self.in_batch = InBatchSoftmax(context.interactions, context.table.n_items)

    @abstractmethod
    def encode_items(self, row_n: Tensor) -> Tensor:
        """(n,) item rows -> (n, D) item vectors, each from the content of that item alone."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        candidates = self.in_batch.candidates(batch)
        item_CD = self.encode_items(candidates.row)  # each item once, also if it occurs several times
        user_BD = self._encode(batch, item_CD, candidates.place(batch.history))
        return {"ranking": self.in_batch(user_BD, item_CD, candidates, batch)}

    def user_vectors(self, batch: Batch) -> Tensor:
        items = self.cached_value()  # an evaluation makes all item vectors first; a single request needs few of them
        if items is not None:
            return self._encode(batch, items, batch.history).float()
        row, place = torch.unique(batch.history, return_inverse=True)
        return self._encode(batch, self.encode_items(row), place).float()

    def item_vectors(self) -> Tensor:
        return self.cached(self._all_items)

    def _encode(self, batch: Batch, item_nD: Tensor, place_BL: Tensor) -> Tensor:
        """(B, D) user vectors from (n, D) item vectors and the index in them of each history item (any for padding)."""
        layout = Layout.of(batch)
        token_ND = F.embedding(layout.flatten(place_BL), item_nD)
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
