"""Options of DiQDiff."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class DiQDiffOptions(SystemOptions):
    """hidden: embedding width d. codes: number of centres M. steps: number of diffusion steps T.

    lambda_history, lambda_intent, lambda_noise: weights in a token of the history, of its centre, and of the noised
    target; with lambda_intent 0 there are no centres. lambda_contrast, lambda_codebook: weights of the loss terms.
    The defaults are the values published for Amazon Beauty.
    """

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
