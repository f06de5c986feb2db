"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018), in RecBole's form.

docs/fidelity.md lists how RecBole's form differs from the original. A training row is a prefix with one target.
"""

from __future__ import annotations

from torch import Tensor

from models.backbone import Backbone
from models.contract import Batch, ModelContext
from models.nn.layout import Layout
from models.nn.transformer import CausalEncoder, init_weights
from models.options.sasrec import SASRecOptions


class SASRec(Backbone):
    """Item and position embeddings through a causal encoder; dot product with the item table."""

    loss_weights = {"ranking": 1.0}  # noqa: RUF012 - read-only by contract

    def __init__(self, options: SASRecOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden, options.ranking)
        self.encoder = CausalEncoder(
            context.max_length, options.hidden, options.inner, options.layers, options.heads,
            options.attention_dropout, options.hidden_dropout,
        )  # fmt: skip
        self.apply(init_weights)

    def encode(self, batch: Batch) -> Tensor:
        layout = Layout.of(batch)
        return self.encoder(self.item_embedding(layout.flatten(batch.history)), layout)  # type: ignore[no-any-return]
