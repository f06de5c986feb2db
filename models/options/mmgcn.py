"""Options of MMGCN."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import ContentField, Scale, SystemOptions, at_least_one, require

MODALITIES: tuple[ContentField, ...] = ("visual", "text")


@dataclass(frozen=True)
class MMGCNOptions(SystemOptions):
    """Options of the graph convolutions.

    hidden: width of the id embeddings and of the states
    visual_width: width that visual content is projected to
    scale: scale of both modalities: raw, unit or standard
    layers: number of graph convolutions of each modality
    train_nodes: whether preferences and id embeddings are trained; false: random numbers that stay, as released
    lambda_regularisation: weight of the regularisation loss
    graph: false makes nodes read themselves and not their neighbours (ablation)
    content: false gives items free vectors, as users have, and no content (ablation)
    """

    needs_interactions = True
    reads_catalogue = True

    hidden: int = 64
    visual_width: int = 256
    layers: int = 3
    scale: Scale = "raw"
    train_nodes: bool = True
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
