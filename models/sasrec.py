"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018), in RecBole's form.

Differences of RecBole's form from the original are in docs/fidelity.md. Training rows are prefixes with one target.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from models.backbone import Backbone
from models.contract import Batch, ContentField, ModelContext
from models.nn.layout import Layout
from models.nn.transformer import CausalEncoder, init_weights
from models.options import at_least_one, probabilities, whole_heads
from models.ranking import RankingOptions


@dataclass(frozen=True)
class SASRecOptions:
    """hidden: embedding width d; inner: feed-forward width; dropouts as RecBole's `*_dropout_prob`.

    ranking: deviations from the published objective (models/ranking.py).
    """

    hidden: int = 64
    inner: int = 256
    layers: int = 2
    heads: int = 2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    ranking: RankingOptions = field(default_factory=RankingOptions)

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "attention_dropout", "hidden_dropout")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        """Content that these options need."""
        return self.ranking.needs


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
