"""Options of MealRec, of its two denoisers and of the backbone under it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.options.base import (
    MOST,
    ContentField,
    Scale,
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
    """Options of temporal-guided content diffusion.

    channels: channels of the two levels of the U-Net (D7)
    attention_heads: heads of the temporal attention
    attention_width: width of queries, keys and values of the temporal attention, over all heads; 0: the content's width
    decay: gamma of Eq. 7: a video k places before the last counts exp(-gamma k) in the condition
    dropout: share of the values that a training step sets to 0
    null_token: whether cross-attention has a learned second key, which makes it a gate (D8)
    scale: scale of the frames and of the videos in c_v: raw, unit or standard, which fits unit noise (D5)
    """

    channels: tuple[int, int] = (64, 128)
    attention_heads: int = 8
    attention_width: int = 128
    decay: float = 0.9
    dropout: float = 0.1
    null_token: bool = True
    scale: Scale = "standard"

    def __post_init__(self) -> None:
        require(1 <= min(self.channels) <= max(self.channels) <= MOST, "channels", self.channels,
                f"each must be at least 1 and at most {MOST:,}")  # fmt: skip
        at_least_one(self, "attention_heads")
        require(self.attention_width >= 0, "attention_width", self.attention_width, "it must be 0 or more")
        require(self.decay >= 0, "decay", self.decay, "it must be 0 or more")
        probabilities(self, "dropout")


@dataclass(frozen=True)
class NPDOptions:
    """Options of noise-unconditional preference denoising.

    heads: attention heads; they divide the backbone's hidden width
    inner: feed-forward width, as a multiple of the hidden width (D18)
    scale: scale of the text of the last item: raw, unit or standard
    dropout: share of the values that a training step sets to 0
    """

    heads: int = 2
    inner: int = 2
    dropout: float = 0.1
    scale: Scale = "raw"

    def __post_init__(self) -> None:
        at_least_one(self, "heads", "inner")
        probabilities(self, "dropout")


@dataclass(frozen=True)
class MealRecOptions(SystemOptions):
    """Options of MealRec; those of its parts are in the sections tcd and npd, and in the section of the backbone.

    backbone: the sequence encoder under MealRec; only the section of this name has an effect
    use_tcd: false leaves TCD out (ablation)
    use_npd: false leaves NPD out (ablation)
    steps: number of steps T of both diffusions
    tcd_steps: number of steps of TCD's diffusion; 0: as steps
    npd_steps: number of steps of NPD's diffusion; 0: as steps
    schedule: how the noise grows over the steps (D11)
    lambda_tcd: weight of TCD's loss (Eq. 16)
    lambda_npd: weight of NPD's loss (Eq. 16); a larger one makes NPD denoise more, a smaller one rank more (D22)
    mix: share of the backbone's x_0 in the ranked preference; 0: the denoised preference alone (D20)
    detach_content: whether gradients stop at the target of TCD's loss
    detach_preference: whether gradients stop at the target of NPD's loss; if not, that loss makes x_0 trivial (D17)
    tcd_sampling: TCD at evaluation: chain is the reverse chain, direct one call on the clean state, auto chooses by
        validation
    npd_sampling: NPD at evaluation: chain is the reverse chain, direct one call on the clean state, auto chooses by
        validation
    tcd_start: step from which TCD's chain starts; 0: from the last
    npd_start: step from which NPD's chain starts; 0: from the last
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
    tcd_steps: int = 0
    npd_steps: int = 0
    schedule: ScheduleKind = "linear"
    lambda_tcd: float = 0.1
    lambda_npd: float = 0.01
    mix: float = 0.0
    detach_content: bool = True
    detach_preference: bool = True
    tcd_sampling: Sampling = "auto"
    npd_sampling: Sampling = "auto"
    tcd_start: int = 0
    npd_start: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        for part in ("tcd", "npd"):
            of_part = getattr(self, f"{part}_steps")
            require(0 <= of_part <= MOST, f"{part}_steps", of_part, f"it must be in 0..{MOST:,}")
            start, last = getattr(self, f"{part}_start"), of_part or self.steps
            require(0 <= start <= last, f"{part}_start", start, f"it must be in 0..{last}, the steps of the diffusion")
        require(0 <= self.mix <= 1, "mix", self.mix, "it must be in 0..1")
        for name in ("lambda_tcd", "lambda_npd"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "it must be 0 or more")
        if self.use_npd:
            whole_heads(getattr(self, self.backbone).hidden, self.npd.heads, "npd.heads")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("sequence", "visual", "text")
