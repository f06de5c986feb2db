"""What a recommender answers. Imports neither torch nor numpy, so that a program can name these types at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a list of commands must not wait for numpy
    import numpy as np
    from numpy.typing import NDArray

#: ids that are named in a sentence, and letters of each
_SHOWN, _LETTERS = 10, 60


def in_words(ids: Sequence[str]) -> str:
    """The first ids, quoted, and how many more there are; "empty" if there are none."""
    shown = [f"{each[:_LETTERS]!r}{'...' if len(each) > _LETTERS else ''}" for each in ids[:_SHOWN]]
    more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(shown) + more if ids else "empty"


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: raw id, title (None if unknown), and the model's score (higher is better).

    A popular item in place of a ranked one has no score (None).
    """

    item: str
    title: str | None
    score: float | None


@dataclass(frozen=True)
class Answer:
    """The answer to one history: recommendations, best first, and ids of the history that the model does not know.

    note: why the recommendations are fewer than were asked for, or are popular items; "" if neither is so.
    """

    recommendations: list[Recommendation]
    unknown: list[str]
    note: str = ""

    @property
    def remarks(self) -> str:
        """All that a reader of the recommendations should know, in words; "" if there is nothing."""
        return remarks(self.unknown, self.note)


@dataclass(frozen=True, eq=False)
class RankedRows:
    """The answers to many histories as arrays, without an object for each recommendation.

    rows: (B, k) int64 item rows, best first, 0 after the last one. scores: (B, k) float32. popular: (B,) whether these
    are popular items in place of ranked ones, which have no scores. unknown, notes: as `Answer` has them, B each.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    popular: NDArray[np.bool_]
    unknown: list[list[str]]
    notes: list[str]


def remarks(unknown: Sequence[str], note: str) -> str:
    """All that a reader of the recommendations should know, in words; "" if there is nothing."""
    ignored = f"ignored, because the model does not know them: {in_words(unknown)}" if unknown else ""
    return "; ".join(filter(None, (ignored, note)))


@dataclass(frozen=True)
class Influence:
    """An item of a history, and by how much it raises the score of a recommendation (below 0: it lowers it).

    effect: None if the history holds nothing else, so that there is no score without the item.
    """

    item: str
    title: str | None
    effect: float | None


@dataclass(frozen=True)
class Frame:
    """A frame of a video. change: by how much the model's denoiser changes it, as a share of the frame; kept: whether
    that is no more than the mean of the video's frames."""

    change: float
    kept: bool
