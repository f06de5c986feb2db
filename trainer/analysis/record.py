"""What an analysis found: the content of analysis.json (docs/report.md), and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import UserError
from retrieval.files import write_text

ANALYSIS = "analysis.json"
VERSION = 1
#: users whose vectors are looked at, unless told otherwise
SAMPLE = 2000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Group(_Part):
    """Users of one kind. share: of all test users. metrics: means over them. interval: half the width of the 95 %
    interval of each mean (normal approximation). against: the same metrics of the other run, where one was named."""

    label: str
    users: int
    share: float
    metrics: dict[str, float]
    interval: dict[str, float]
    against: dict[str, float] = {}


class Grouping(_Part):
    """The test users apart by one property. about: what the property is, in words."""

    name: str
    title: str
    about: str
    groups: tuple[Group, ...]


class CalibrationBin(_Part):
    """Users whose expected hit rate is alike. expected: its mean; hit_rate: the share of them with a hit."""

    users: int
    expected: float
    hit_rate: float


class Calibration(_Part):
    """What the scores promise, beside what they keep. k: length of the list. temperature: of the softmax over scores,
    fitted on validation targets. error: mean distance of expected and observed over users. bins: by quantile."""

    k: int
    users: int
    temperature: float
    error: float
    bins: tuple[CalibrationBin, ...]


class Case(_Part):
    """One user. history: titles, oldest first. shown: titles of the first of the list. expected: the hit rate that the
    scores promise. rank: of the target, 0 if it was not found."""

    user: str
    history: tuple[str, ...]
    target: str
    rank: int
    expected: float
    shown: tuple[str, ...]
    target_count: int


class Near(_Part):
    """A neighbour of a user's vector: an item (its title), or another user (the title of their last item)."""

    name: str
    similarity: float


class Neighbours(_Part):
    """Around one user's vector: the nearest items, and the users nearest to it."""

    user: str
    history: tuple[str, ...]
    target: str
    items: tuple[Near, ...]
    users: tuple[Near, ...]


class FrameExample(_Part):
    """The last item of one user, frame by frame. on_topic: empty where nobody knows."""

    title: str
    change: tuple[float, ...]
    influence: tuple[float, ...]
    on_topic: tuple[bool, ...] = ()


class FrameTruth(_Part):
    """Synthetic worlds know which frames show an item's topic. on, off: the mean over such frames and over filler.
    separation: how likely a frame on topic has the larger value than filler of the same item (0.5: by chance)."""

    on: float
    off: float
    separation: float


class Frames(_Part):
    """What TCD does to the frames of each user's last item.

    change: per frame, the squared distance that TCD moves it, as a share of its squared length; what it keeps, it moves
    little. influence: per frame, 1 - cosine of the user vector and the one with this frame replaced by the mean frame.
    truth: by measure ("change", "influence"), on synthetic data.
    """

    kind: str
    users: int
    change: tuple[float, ...]
    influence: tuple[float, ...]
    truth: dict[str, FrameTruth] = {}
    examples: tuple[FrameExample, ...] = ()


class Point(_Part):
    """A point of the map. kind: a user vector, a user's target, or a frame as NPD reads it. focus: the number of the
    user whose points are shown together; -1: one of the crowd. frame: its number, from 1."""

    kind: Literal["user", "target", "frame"]
    x: float
    y: float
    title: str
    focus: int = -1
    frame: int = 0


class Embedding(_Part):
    """A t-SNE map of vectors of length 1. users: in the sample. distance: mean over the users of the distance from user
    to target, as a share of that to another user's target, before t-SNE."""

    users: int
    perplexity: float
    seed: int
    distance: float
    points: tuple[Point, ...]


class Analysis(_Part):
    """The whole of analysis.json. keys: metrics, such as "HR@10". sampled: users whose vectors were looked at.
    What a system cannot have (a baseline has no vectors) is None or empty."""

    version: int = VERSION
    run: str
    system: str
    dataset: str
    command: str
    against: str | None
    keys: tuple[str, ...]
    users: int
    sampled: int
    overall: Group
    groupings: tuple[Grouping, ...]
    calibration: Calibration
    confident_misses: tuple[Case, ...]
    lucky_hits: tuple[Case, ...]
    neighbours: tuple[Neighbours, ...]
    frames: Frames | None
    embedding: Embedding | None


def write_analysis(path: Path, analysis: Analysis) -> None:
    """Write the file, whole or not at all."""
    write_text(path, analysis.model_dump_json(indent=1) + "\n")


def read_analysis(path: Path) -> Analysis:
    """The analysis in the file. Raises UserError, naming it, if it is damaged or of another version."""
    try:
        found = Analysis.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} cannot be read ({first}); make it again with mealrec analyse") from None
    if found.version != VERSION:
        raise UserError(f"{path} has version {found.version}, not {VERSION}; make it again with mealrec analyse")
    return found
