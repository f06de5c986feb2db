"""Options of IISAN and IISAN-Versa."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.errors import UserError
from models.options.base import ContentField, Scale, SystemOptions, at_least_one, probabilities, whole_heads


@dataclass(frozen=True)
class _AdapterOptions(SystemOptions):
    """Base class of the options of both forms: they need the layer states of two encoders.

    scale: scale of the layer states: raw, unit or standard
    """

    scale: Scale = "raw"

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("visual_layers", "text_layers")


@dataclass(frozen=True)
class IISANOptions(_AdapterOptions):
    """Options of the adapters over layer states of equal shape.

    hidden: width of the item vectors
    adapter: inner width of the adapters
    every: each n-th layer of the encoders gets an adapter
    """

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
                "IISAN needs two encoders with equally many layer states of equal width; here the video has "
                f"{visual[0]} states of width {visual[1]}, and the title {text[0]} states of width {text[1]}. "
                "Use the system iisan-versa, which works with any two encoders"
            )


@dataclass(frozen=True)
class IISANVersaOptions(_AdapterOptions):
    """Options of the adapters over layer states of two different encoders.

    hidden: width of the item vectors
    adapter: inner width of the adapters of the text and the inter-modal tower
    visual_adapter: inner width of the adapters of the visual tower
    groups: the most layers of an encoder that get an adapter, besides its embedding layer
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
