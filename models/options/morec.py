"""Options of MoRec."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import ContentField, Scale, SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class MoRecOptions(SystemOptions):
    """Options of the item network and of the encoder over its vectors.

    depth: number of layers of an item's network after the projection
    text: whether the title of an item is used
    visual: whether the video of an item is used
    scale: scale of title and video: raw, unit or standard
    """

    hidden: int = 512
    depth: int = 2
    text: bool = True
    visual: bool = True
    scale: Scale = "raw"
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "layers")
        require(self.depth >= 0, "depth", self.depth, "it must be at least 0")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "dropout")
        require(self.text or self.visual, "text", self.text, "it must be true if visual is false")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        wanted: tuple[tuple[ContentField, bool], ...] = (("text", self.text), ("visual", self.visual))
        return tuple(field for field, used in wanted if used)
