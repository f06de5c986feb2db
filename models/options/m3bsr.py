"""Options of M3BSR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.options.base import ContentField, SystemOptions, at_least_one, probabilities, require, whole_heads

#: behaviours that are deep, and shallow, where a dataset has them
DEEP = ("like", "cvm_like", "comment", "follow", "collect", "forward")
SHALLOW = ("effective_view", "view")


@dataclass(frozen=True)
class M3BSROptions(SystemOptions):
    """inner: feed-forward width of the experts. steps: T of every diffusion, linear beta 1e-4..0.02.

    evaluation_step: where the denoisers start at evaluation; "estimate" is one call there, "chain" `chain` calls on the
    way down to 0, "none" feeds what was not denoised, as the released code does; "auto" picks on validation.
    denoise_content, denoise_behaviour: off, that diffusion is left out. deep, shallow: names of behaviours; those that
    the dataset lacks are ignored. use_behaviours: off, behaviours are ignored as if the dataset had one only.
    contrast_temperature: of the term that drives experts apart.
    """

    hidden: int = 128
    inner: int = 512
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
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
        require(in_range, "evaluation_step", self.evaluation_step, f"it lies in 1..steps ({self.steps})")
        require(self.chain <= self.evaluation_step, "chain", self.chain, "it is at most evaluation_step")
        ways = ("auto", "estimate", "chain", "none")
        require(self.sampling in ways, "sampling", self.sampling, f"it is one of {', '.join(ways)}")
        require(self.contrast_temperature > 0, "contrast_temperature", self.contrast_temperature, "it is above 0")
        for name in ("lambda_diffusion", "lambda_contrast"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it is 0 or more")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("visual", "text")
