"""Options of the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.options.base import ContentField, Scale, SystemOptions, at_least_one, require


@dataclass(frozen=True)
class BaselineOptions(SystemOptions):
    """Base class of the options of all baselines: they are not trained."""

    trained = False


@dataclass(frozen=True)
class PopularityOptions(BaselineOptions):
    """Popularity has no options."""

    needs_interactions = True


@dataclass(frozen=True)
class RecencyOptions(BaselineOptions):
    """Options of the baselines that compare items with those of the history.

    recency: how much newer items of the history count more: the k-th newest has weight k ** -recency
    """

    # this default and those below have the best validation NDCG@10 on two synthetic worlds and the MicroLens sample
    recency: float = 1.5

    def __post_init__(self) -> None:
        require(self.recency >= 0, "recency", self.recency, "it must be 0 or more")


@dataclass(frozen=True)
class TitleOptions(RecencyOptions):
    """TF-IDF over titles has no options of its own."""

    needs_titles = True


@dataclass(frozen=True)
class TransitionOptions(RecencyOptions):
    """Options of counting which items follow which.

    window: number of later items that count as followers of an item
    distance: the n-th follower counts n ** -distance
    """

    needs_interactions = True

    window: int = 10
    distance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "window")
        require(self.distance >= 0, "distance", self.distance, "it must be 0 or more")


@dataclass(frozen=True)
class ContentOptions(RecencyOptions):
    """Options of the comparison by content vectors.

    field: content that items are compared by: vectors of titles (text) or of videos (visual)
    scale: scale of its vectors, before their cosine: raw, unit or standard
    """

    field: Literal["text", "visual"] = "text"
    scale: Scale = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.field in ("text", "visual"), "field", self.field, "it must be text or visual")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return (self.field,)
