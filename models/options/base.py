"""The properties of a system that are known before it is built: its options, their bounds, and the data that it needs.

Nothing in this package imports torch, so that the command line reports a mistake at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from models.errors import UserError

ContentField = Literal["sequence", "visual", "text", "visual_layers", "text_layers"]
Similarity = Literal["dot", "cosine"]
#: how the vectors of content are scaled before a system reads them, see models/nn/content.py
Scale = Literal["raw", "unit", "standard"]
#: the largest width or count, and the largest number of blocks, each of which is a module: a slip of the keyboard is
#: told before memory is full
MOST, MOST_BLOCKS = 1 << 17, 1 << 10
ScheduleKind = Literal["linear", "cosine", "trunc_lin"]


@dataclass(frozen=True)
class SystemOptions:
    """The options of one system. Every field has a default; `__post_init__` checks bounds and raises UserError.

    A field is a plain value (`models.options.plain` says of which types), or a frozen dataclass of plain values. The
    docstring of its class says what it means, on a line `field: meaning`; `mealrec settings` shows that line. These
    mean the same in every system that does not say otherwise:

    hidden: width of the vectors of items and of the states
    inner: width of the feed-forward layers
    layers: number of transformer blocks
    heads: attention heads of each block; they divide the hidden width
    dropout: share of the values that a training step sets to 0
    attention_dropout: share of the attention weights that a training step sets to 0
    hidden_dropout: share of the values that a training step sets to 0, in the input and after each layer
    """

    #: whether the system is trained; the constructor of a baseline fits it, so there is nothing to train
    trained: ClassVar[bool] = True
    #: whether each training step reads the vectors of all items, and no option changes that
    reads_catalogue: ClassVar[bool] = False
    #: whether a system that is rebuilt from an export needs the training interactions, or the titles, in the export
    needs_interactions: ClassVar[bool] = False
    needs_titles: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[ContentField, ...]:
        """The content fields that the system needs with these options, to be built and to encode histories."""
        return ()

    def check_content(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError if content of these shapes (of one item, by field) does not fit. `shapes` has all `needs`."""


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raises UserError if not `ok`: it says which option is wrong, its value, and the rule that it breaks."""
    if not ok:
        raise UserError(f"{name} is {value!r}: {rule}")


def at_least_one(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is 1 or more, and no larger than any model is."""
    for name in names:
        value, most = getattr(options, name), MOST_BLOCKS if name in ("layers", "experts") else MOST
        require(value >= 1, name, value, "it must be at least 1")
        require(value <= most, name, value, f"it must be at most {most:,}")


def probabilities(options: object, *names: str) -> None:
    """Raises UserError unless each option of `names` is a dropout probability: 0 or more, below 1."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, name, value, "it must be in 0..1, 1 excluded")


def whole_heads(width: int, heads: int, name: str = "heads") -> None:
    """Raises UserError unless `heads` is 1 or more and divides `width`."""
    require(heads >= 1 and width % heads == 0, name, heads, f"it must divide the hidden width ({width})")
