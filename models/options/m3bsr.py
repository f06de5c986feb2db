"""Options of M3BSR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.options.base import ContentField, Scale, SystemOptions, at_least_one, probabilities, require, whole_heads

#: names of the behaviours that are deep, and of those that are shallow; a dataset may have some of them
DEEP = ("like", "cvm_like", "comment", "follow", "collect", "forward")
SHALLOW = ("effective_view", "view")


@dataclass(frozen=True)
class M3BSROptions(SystemOptions):
    """Options of the two diffusions and the experts.

    inner: feed-forward width of the experts
    scale: scale of text and video: raw, unit or standard
    steps: number of steps T of both diffusions, with a linear schedule from 1e-4 to 0.02
    evaluation_step: the step at which the denoisers start at evaluation
    chain: number of calls of a chain from evaluation_step down to 0
    sampling: at evaluation, estimate is one call at evaluation_step, chain several, none does not denoise (as the
        released code), auto chooses by validation
    denoise_content: false leaves the diffusion of content out
    denoise_behaviour: false leaves the diffusion of behaviours out
    use_behaviours: false ignores behaviours, as if the dataset had one alone
    deep: names of the deep behaviours; names that the dataset lacks are ignored
    shallow: names of the shallow behaviours; names that the dataset lacks are ignored
    lambda_diffusion: weight of the diffusions' losses
    lambda_contrast: weight of the loss that makes the experts differ
    contrast_temperature: temperature of the loss that makes the experts differ
    """

    reads_catalogue = True

    hidden: int = 128
    inner: int = 512
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    scale: Scale = "raw"
    steps: int = 100
    evaluation_step: int = 20
    chain: int = 4
    sampling: Literal["auto", "estimate", "chain", "none"] = "auto"
    denoise_content: bool = True
    denoise_behaviour: bool = True
    use_behaviours: bool = True
    deep: tuple[str, ...] = DEEP
    shallow: tuple[str, ...] = SHALLOW
    lambda_diffusion: float = 0.001
    lambda_contrast: float = 0.0001
    contrast_temperature: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "steps", "chain")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "dropout")
        in_range = 1 <= self.evaluation_step <= self.steps
        require(in_range, "evaluation_step", self.evaluation_step, f"it must be in 1..steps ({self.steps})")
        require(self.chain <= self.evaluation_step, "chain", self.chain, "it must be at most evaluation_step")
        ways = ("auto", "estimate", "chain", "none")
        require(self.sampling in ways, "sampling", self.sampling, f"it must be one of {', '.join(ways)}")
        require(self.contrast_temperature > 0, "contrast_temperature", self.contrast_temperature, "it must be above 0")
        for name in ("lambda_diffusion", "lambda_contrast"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it must be 0 or more")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("visual", "text")
