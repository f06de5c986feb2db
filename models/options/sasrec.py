"""Options of SASRec."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.options.base import ContentField, SystemOptions, at_least_one, probabilities, whole_heads
from models.options.ranking import RankingOptions


@dataclass(frozen=True)
class SASRecOptions(SystemOptions):
    """Options of SASRec; the section `ranking` has deviations from the published objective (models/ranking.py)."""

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
        return self.ranking.needs
