"""Options of MealRec, of its two denoisers and of the backbone under it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.errors import UserError
from models.options.base import (
    ContentField,
    ScheduleKind,
    SystemOptions,
    at_least_one,
    probabilities,
    require,
    whole_heads,
)
from models.options.cl4srec import CL4SRecOptions
from models.options.sasrec import SASRecOptions
from models.options.tedrec import TedRecOptions

Sampling = Literal["auto", "chain", "direct"]


@dataclass(frozen=True)
class TCDOptions:
    """channels: those of the U-Net's two levels (D7). attention_width: width of queries, keys and values of the
    temporal attention, over all heads (0: the width of the content). decay: gamma of Eq. 7. null_token: see
    CrossAttention (D8).
    """

    channels: tuple[int, int] = (64, 128)
    attention_heads: int = 8
    attention_width: int = 128
    decay: float = 0.9
    dropout: float = 0.1
    null_token: bool = True

    def __post_init__(self) -> None:
        require(min(self.channels) >= 1, "channels", self.channels, "each must be at least 1")
        at_least_one(self, "attention_heads")
        require(self.attention_width >= 0, "attention_width", self.attention_width, "it must be 0 or more")
        require(self.decay >= 0, "decay", self.decay, "it must be 0 or more")
        probabilities(self, "dropout")


@dataclass(frozen=True)
class NPDOptions:
    """inner: feed-forward width as a multiple of D (D18)."""

    heads: int = 2
    inner: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_least_one(self, "heads", "inner")
        probabilities(self, "dropout")


@dataclass(frozen=True)
class MealRecOptions(SystemOptions):
    """backbone: the sequence encoder; its options are in the section of the same name.

    steps: T of both diffusions. lambda_tcd, lambda_npd: loss weights (Eq. 16). use_tcd, use_npd: False for the paper's
    ablations. mix: weight of x_0 in the ranked preference (0: only the denoised one, D20). detach_content,
    detach_preference: whether to stop gradients into the targets of L_T and L_N; without the second, L_N makes x_0
    trivial (docs/fidelity.md, D17). *_sampling: the use of each denoiser at evaluation: "chain" is the reverse chain
    from step *_start (0: from T), "direct" is one call on the clean state, "auto" chooses by validation.
    """

    backbone: Literal["sasrec", "cl4srec", "tedrec"] = "tedrec"
    sasrec: SASRecOptions = field(default_factory=SASRecOptions)
    cl4srec: CL4SRecOptions = field(default_factory=CL4SRecOptions)
    tedrec: TedRecOptions = field(default_factory=TedRecOptions)
    tcd: TCDOptions = field(default_factory=TCDOptions)
    npd: NPDOptions = field(default_factory=NPDOptions)
    use_tcd: bool = True
    use_npd: bool = True
    steps: int = 25
    schedule: ScheduleKind = "linear"
    lambda_tcd: float = 0.1
    lambda_npd: float = 0.1
    mix: float = 0.0
    detach_content: bool = True
    detach_preference: bool = True
    tcd_sampling: Sampling = "auto"
    npd_sampling: Sampling = "auto"
    tcd_start: int = 0
    npd_start: int = 0

    def __post_init__(self) -> None:
        for name in ("tcd_start", "npd_start"):
            if not 0 <= getattr(self, name) <= self.steps:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be in 0..model.steps ({self.steps})")
        if self.steps < 1:
            raise UserError(f"model.steps is {self.steps}: it must be at least 1")
        require(0 <= self.mix <= 1, "mix", self.mix, "it must be in 0..1")
        for name in ("lambda_tcd", "lambda_npd"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it must be 0 or more")
        if self.use_npd:
            whole_heads(getattr(self, self.backbone).hidden, self.npd.heads, "npd.heads")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("sequence", "visual", "text")
