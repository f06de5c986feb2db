"""What is known of a system before it is built: its options, their bounds, and what it needs of the data.

Nothing in this package imports torch, so that a mistake in a command is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from models.errors import UserError

ContentField = Literal["sequence", "visual", "text", "visual_layers", "text_layers"]
Similarity = Literal["dot", "cosine"]
ScheduleKind = Literal["linear", "cosine", "trunc_lin"]


@dataclass(frozen=True)
class SystemOptions:
    """The options of one system: every field has a default, bounds are checked in `__post_init__`.

    Fields hold plain values (`models.options.plain` has which), or a frozen dataclass of them.
    """

    #: whether there is anything to train; a baseline is fitted by its constructor
    trained: ClassVar[bool] = True
    #: whether the built system still needs the training interactions, or the titles, so that an export carries them
    needs_interactions: ClassVar[bool] = False
    needs_titles: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[ContentField, ...]:
        """Content without which the system cannot be built with these options, nor encode a history later."""
        return ()

    def check_content(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError where content of these shapes (of one item, by field) does not fit; `needs` are all there."""


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raises UserError that says which option is wrong, its value, and the rule it breaks."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {rule}")


def at_least_one(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is 1 or more."""
    for name in names:
        value = getattr(options, name)
        require(value >= 1, name, value, "it is at least 1")


def probabilities(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is a dropout probability: 0 or more, below 1."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, name, value, "it lies in 0..1, 1 excluded")


def whole_heads(width: int, heads: int, name: str = "heads") -> None:
    """Raises UserError unless `heads` divide `width`."""
    require(heads >= 1 and width % heads == 0, name, heads, f"heads divide the hidden width ({width})")
