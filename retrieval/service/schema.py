"""The JSON of the service: what is asked, what is answered, and the limits of both. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: most items that are recommended at a time, and most that a history, `exclude` or `among` may hold
MOST_ITEMS, LONGEST_HISTORY, LONGEST_FILTER = 1000, 1000, 10_000
#: most items that a search finds
MOST_FOUND = 50
#: most items that are explained at a time
MOST_EXPLAINED = 50
_LONGEST_ID, _MOST_FRAMES = 256, 1000
Id = Annotated[str, Field(min_length=1, max_length=_LONGEST_ID, description="a raw item id, as in the training data")]
Count = Annotated[int, Field(ge=1, le=MOST_ITEMS, description="how many items, at most the catalogue")]


class Asked(BaseModel):
    """What a client sends. Types are not converted: 7 is no id, and "20" no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(Asked):
    """Whom to recommend for: `history`, or `user` where the service knows users; and what may be recommended."""

    history: Annotated[list[Id], Field(max_length=LONGEST_HISTORY, description="oldest first")] | None = None
    user: Annotated[str, Field(min_length=1, max_length=_LONGEST_ID)] | None = None
    k: Count = 20
    exclude: Annotated[list[Id], Field(max_length=LONGEST_FILTER, description="never recommended")] = []
    among: Annotated[list[Id], Field(max_length=LONGEST_FILTER, description="only some of these")] | None = None
    exclude_history: bool = True
    popular_instead: Annotated[
        bool, Field(description="popular items, with a note, for a history without an id that the model knows")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, values: Any) -> Any:
        # before the fields are checked, and by hand, so that the message is about both of them
        if isinstance(values, dict) and (values.get("history") is None) == (values.get("user") is None):
            raise ValueError("give either history, a list of item ids, or user")
        return values


class ExplainRequest(Asked):
    """A history, oldest first, and an item whose score is to be explained by it."""

    history: Annotated[list[Id], Field(min_length=1, max_length=LONGEST_HISTORY)]
    item: Id


class InfluencesRequest(Asked):
    """A history, oldest first, and items whose scores are to be explained by it."""

    history: Annotated[list[Id], Field(min_length=1, max_length=LONGEST_HISTORY)]
    items: Annotated[list[Id], Field(min_length=1, max_length=MOST_EXPLAINED)]


class AskedInAddress(BaseModel):
    """What a client sends in the address, where everything is text: there "20" is a number."""

    model_config = ConfigDict(extra="forbid")


class SimilarQuery(AskedInAddress):
    """An item whose neighbours are asked for."""

    item: Id
    k: Count = 20


class ItemQuery(AskedInAddress):
    """An item that is asked for."""

    id: Id


class ThumbnailQuery(ItemQuery):
    """A picture of an item; or of one of its frames, counted from 1."""

    frame: Annotated[int, Field(ge=1, le=_MOST_FRAMES)] | None = None


class ItemsQuery(AskedInAddress):
    """A text that titles or ids hold."""

    text: Annotated[str, Field(min_length=1, max_length=100)]
    most: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 20


class NothingAsked(AskedInAddress):
    """No parameters."""


class Item(BaseModel):
    """An item of the catalogue. title: null if unknown."""

    item: str
    title: str | None


class Scored(Item):
    """score: the model's, higher is better; null for a popular item in place of a ranked one."""

    score: float | None


class RecommendResponse(BaseModel):
    """recommendations: best first. unknown: ids of the history that the model does not know. note: why the list is
    short, or has popular items; else empty. model: the checksum of the model that answered."""

    recommendations: list[Scored]
    unknown: list[str]
    note: str
    model: str


class SimilarResponse(BaseModel):
    """The nearest items, best first."""

    similar: list[Scored]
    model: str


class Influenced(Item):
    """effect: by how much the score falls without this item of the history; null if the history holds nothing else."""

    effect: float | None


class DenoisedFrame(BaseModel):
    """A frame of the last video of the history. change: by how much the model's denoiser changes it, as a share of the
    frame. kept: whether that is no more than the mean of the video's frames."""

    change: float
    kept: bool


class ExplainResponse(BaseModel):
    """One entry for each item of the history that the model knows, in its order. frames: of the last of them; empty
    for a model that denoises no frames, and where they are not known."""

    influences: list[Influenced]
    frames: list[DenoisedFrame]
    model: str


class InfluencesResponse(BaseModel):
    """For each asked item, what `ExplainResponse` has for one."""

    influences: list[list[Influenced]]
    frames: list[DenoisedFrame]
    model: str


class FoundResponse(BaseModel):
    """Items whose id or title holds the searched text."""

    items: list[Item]


class ModelResponse(BaseModel):
    """What is served. ranked_by: exactly or by an index. run: which training made it. thumbnails: whether pictures of
    items are known. trouble: why the last reload failed; else empty."""

    system: str
    items: int
    model: str
    ranked_by: str
    knows_users: bool
    metrics: dict[str, Any]
    run: str
    thumbnails: bool
    trouble: str


class ErrorResponse(BaseModel):
    """What was wrong, in a sentence."""

    error: str
