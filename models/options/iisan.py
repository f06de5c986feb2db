"""Options of IISAN and IISAN-Versa."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.errors import UserError
from models.options.base import ContentField, SystemOptions, at_least_one, probabilities, whole_heads


@dataclass(frozen=True)
class _AdapterOptions(SystemOptions):
    """What both forms read: the layer states of two encoders."""

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("visual_layers", "text_layers")


@dataclass(frozen=True)
class IISANOptions(_AdapterOptions):
    """hidden: item width d; adapter: inner width of all adapters; every: one layer in so many gets an adapter."""

    hidden: int = 64
    adapter: int = 64
    every: int = 2
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "adapter", "every", "layers")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "dropout")

    def check_content(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        visual, text = (shapes[field] for field in self.needs)
        if visual != text:
            raise UserError(
                "IISAN needs two encoders with equally many layer states of equal width; here are "
                f"{visual[0]} states of {visual[1]} of the video and {text[0]} states of {text[1]} of the title. "
                "Use the system iisan-versa, which takes any two"
            )


@dataclass(frozen=True)
class IISANVersaOptions(_AdapterOptions):
    """adapter, visual_adapter: inner width of adapters (text and inter tower; visual tower). groups: layers of an
    encoder that get an adapter, at most, besides its embedding layer.
    """

    hidden: int = 64
    adapter: int = 64
    visual_adapter: int = 512
    groups: int = 6
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "adapter", "visual_adapter", "groups", "layers")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "dropout")
