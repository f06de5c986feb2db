"""Options of models/ranking.py, which says how a backbone learns to rank; several systems share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.options.base import ContentField, Scale, probabilities, require

#: more items than a step can draw to any use
MOST_DRAWN = 1 << 20
#: how the candidates of a sampled softmax are drawn
Sampling = Literal["uniform", "popularity"]


@dataclass(frozen=True)
class RankingOptions:
    """Options that deviate from the published objective.

    untied: whether candidates have a table of vectors of their own
    shorten: share of the training rows whose history of n items loses 1 to n-1 of them
    content: content that is added to each candidate, as a learned projection of unit vectors; none: no content
    scale: scale of this content before its vectors get unit length: raw, unit or standard
    id_dropout: share of the items whose id vector a training step leaves out, so that only content represents them
    absent: whether items without a training interaction are negatives like all others, or left_out of the softmax
    negatives: number of items that a step draws; its softmax runs over them and the targets of the batch, for a
        catalogue that is too large for a softmax over all items; 0: all items
    sampling: how they are drawn: uniform, or by popularity (in proportion to 1 + the training rows with this target)
    """

    untied: bool = False
    shorten: float = 0.0
    content: Literal["none", "text", "visual"] = "none"
    scale: Scale = "standard"
    id_dropout: float = 0.0
    absent: Literal["negatives", "left_out"] = "negatives"
    negatives: int = 0
    sampling: Sampling = "uniform"

    def __post_init__(self) -> None:
        probabilities(self, "id_dropout")
        require(0 <= self.shorten <= 1, "shorten", self.shorten, "it must be in 0..1")
        require(self.content in ("none", "text", "visual"), "content", self.content, "it must be none, text or visual")
        require(self.absent in ("negatives", "left_out"), "absent", self.absent, "it must be negatives or left_out")
        known = self.sampling in ("uniform", "popularity")
        require(known, "sampling", self.sampling, "it must be uniform or popularity")
        require(0 <= self.negatives <= MOST_DRAWN, "negatives", self.negatives, f"it must be in 0..{MOST_DRAWN:,}")
        alone = self.content != "none" or not self.id_dropout
        require(alone, "id_dropout", self.id_dropout, "it needs content, which represents an item without its ID")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        """Content that these options need."""
        return () if self.content == "none" else (self.content,)
