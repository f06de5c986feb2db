"""Options of the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.options.base import ContentField, SystemOptions, at_least_one, require


@dataclass(frozen=True)
class BaselineOptions(SystemOptions):
    """What all baselines have in common: nothing is trained."""

    trained = False


@dataclass(frozen=True)
class PopularityOptions(BaselineOptions):
    """There is nothing to choose."""

    needs_interactions = True


@dataclass(frozen=True)
class RecencyOptions(BaselineOptions):
    """recency: the k-th newest item of a history weighs k ** -recency."""

    # chosen, as the defaults below, on validation NDCG@10 of two synthetic worlds and of the MicroLens sample
    recency: float = 1.5

    def __post_init__(self) -> None:
        require(self.recency >= 0, "recency", self.recency, "it is 0 or more")


@dataclass(frozen=True)
class TitleOptions(RecencyOptions):
    """recency alone, as above."""

    needs_titles = True


@dataclass(frozen=True)
class TransitionOptions(RecencyOptions):
    """window: how many later items an item is followed by, the n-th later one counting n ** -distance."""

    needs_interactions = True

    window: int = 10
    distance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "window")
        require(self.distance >= 0, "distance", self.distance, "it is 0 or more")


@dataclass(frozen=True)
class ContentOptions(RecencyOptions):
    """field: what items are compared by."""

    field: Literal["text", "visual"] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.field in ("text", "visual"), "field", self.field, "it is text or visual")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return (self.field,)
