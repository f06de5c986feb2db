"""Options of MMGCN."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import ContentField, SystemOptions, at_least_one, require

MODALITIES: tuple[ContentField, ...] = ("visual", "text")


@dataclass(frozen=True)
class MMGCNOptions(SystemOptions):
    """hidden: width of ID embeddings and states. visual_width: width that visual content is projected to.

    lambda_regularisation: loss weight. For ablations: graph False makes nodes read themselves, not their neighbours;
    content False gives items free vectors, as users have, and not content.
    """

    needs_interactions = True

    hidden: int = 64
    visual_width: int = 256
    layers: int = 3
    lambda_regularisation: float = 0.1
    graph: bool = True
    content: bool = True

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "visual_width", "layers")
        weight = self.lambda_regularisation
        require(weight >= 0, "lambda_regularisation", weight, "it must be 0 or more")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return MODALITIES if self.content else ()
