"""Options of DiQDiff."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class DiQDiffOptions(SystemOptions):
    """The defaults are the values published for Amazon Beauty.

    embedding_dropout: share of the values of the item vectors in the history that a training step sets to 0
    steps: number of diffusion steps T
    codes: number of centres M that histories are quantised to
    code_temperature: temperature of the soft choice of a centre
    lambda_history: weight of the history in each token of the diffusion's input
    lambda_intent: weight of the history's centre in each token; with 0 there are no centres
    lambda_noise: weight of the noised target in each token
    contrast_temperature: temperature of the contrastive loss
    lambda_contrast: weight of the contrastive loss
    lambda_codebook: weight of the loss that draws centres and histories together
    """

    reads_catalogue = True

    hidden: int = 128
    inner: int = 512
    layers: int = 4
    heads: int = 4
    embedding_dropout: float = 0.3
    dropout: float = 0.1
    steps: int = 32
    codes: int = 32
    code_temperature: float = 0.1
    lambda_history: float = 0.6
    lambda_intent: float = 0.4
    lambda_noise: float = 0.001
    contrast_temperature: float = 0.07
    lambda_contrast: float = 1.0
    lambda_codebook: float = 1.0

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "steps", "codes")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "embedding_dropout", "dropout")
        for name in ("code_temperature", "contrast_temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "it must be above 0")
        for name in ("lambda_history", "lambda_intent", "lambda_noise", "lambda_contrast", "lambda_codebook"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it must be 0 or more")
