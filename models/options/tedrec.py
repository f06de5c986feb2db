"""Options of TedRec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.options.base import (
    ContentField,
    Scale,
    Similarity,
    SystemOptions,
    at_least_one,
    probabilities,
    require,
    whole_heads,
)
from models.options.ranking import RankingOptions


@dataclass(frozen=True)
class TedRecOptions(SystemOptions):
    """The published form has similarity cosine and filter_start noise.

    The section `ranking` has other deviations from the published objective (models/ranking.py).

    experts: number of experts of the text adaptor
    scale: scale of the text: raw, unit or standard
    adaptor_dropout: share of the values of the text that a training step sets to 0 in the adaptor
    temperature: temperature of the softmax over cosines
    similarity: comparison of a user with an item: cosine, or the inner product (dot)
    filter_start: first value of the filter: noise, or identity, which leaves the ids unmixed (docs/fidelity.md)
    """

    hidden: int = 300
    inner: int = 256
    layers: int = 2
    heads: int = 2
    experts: int = 8
    adaptor_dropout: float = 0.2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    temperature: float = 0.07
    scale: Scale = "raw"
    similarity: Similarity = "cosine"
    filter_start: Literal["noise", "identity"] = "noise"
    ranking: RankingOptions = field(default_factory=RankingOptions)

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "experts")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "adaptor_dropout", "attention_dropout", "hidden_dropout")
        require(self.temperature > 0, "temperature", self.temperature, "it must be above 0")
        require(self.similarity in ("dot", "cosine"), "similarity", self.similarity, "it must be dot or cosine")
        start = self.filter_start
        require(start in ("noise", "identity"), "filter_start", start, "it must be noise or identity")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return tuple(dict.fromkeys(("text", *self.ranking.needs)))
