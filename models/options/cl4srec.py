"""Options of CL4SRec."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import Similarity, require
from models.options.sasrec import SASRecOptions


@dataclass(frozen=True)
class CL4SRecOptions(SASRecOptions):
    """Options of SASRec, and those of the contrast between two changed views of a history.

    crop: share of the history that a crop keeps
    mask: share of the history that is masked
    reorder: share of the history that is shuffled, in one block
    lambda_contrast: weight of the contrastive loss (InfoNCE)
    contrast_temperature: temperature of the contrastive loss, not of the ranking
    contrast_similarity: similarity of two views in the contrastive loss, not of the ranking
    """

    crop: float = 0.6
    mask: float = 0.3
    reorder: float = 0.6
    lambda_contrast: float = 0.1
    contrast_temperature: float = 1.0
    contrast_similarity: Similarity = "dot"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "mask", "reorder"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "it must be in 0..1")
        require(self.lambda_contrast >= 0, "lambda_contrast", self.lambda_contrast, "it must be 0 or more")
        require(self.contrast_temperature > 0, "contrast_temperature", self.contrast_temperature, "it must be above 0")
        known = self.contrast_similarity in ("dot", "cosine")
        require(known, "contrast_similarity", self.contrast_similarity, "it must be dot or cosine")
