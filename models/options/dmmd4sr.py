"""Options of DMMD4SR."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import ContentField, Scale, SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class DMMD4SROptions(SystemOptions):
    """Options of the four levels of denoising, and of the encoder after them.

    denoiser_dropout: share of the values that a training step sets to 0 in the denoisers
    time_width: width of the embedding of the diffusion step
    scale: scale of text and video: raw, unit or standard
    steps: number of steps T of every diffusion
    beta_start: noise variance of the first step
    beta_end: noise variance of the last step
    start: the step from which the reverse chains start
    clusters: number of centres of histories
    id_weight: weight of the history's ids in the condition of level 2
    cluster_weight: weight of the history's centre in the condition of level 2
    experts: number of experts of level 3
    top_experts: number of experts of level 3 that a token uses
    final_mix: share of level 4's output in the input of the encoder
    lambda_domain: weight of level 1's loss (domain shift of each modality)
    lambda_interest: weight of level 2's loss (content that the user's interest supports)
    lambda_uncertainty: weight of level 3's loss (KL divergence)
    lambda_final: weight of level 4's loss (the fused sequence)
    lambda_codebook: weight of the loss that draws centres and their members together
    use_content: false leaves the ids alone (ablation)
    use_denoising: false leaves level 3 alone (ablation)
    """

    reads_catalogue = True

    hidden: int = 64
    inner: int = 256
    layers: int = 2
    heads: int = 2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    denoiser_dropout: float = 0.5
    time_width: int = 16
    scale: Scale = "raw"
    steps: int = 32
    beta_start: float = 1e-4
    beta_end: float = 2e-3
    start: int = 5
    clusters: int = 32
    id_weight: float = 0.6
    cluster_weight: float = 0.4
    experts: int = 4
    top_experts: int = 2
    final_mix: float = 0.08
    lambda_domain: float = 0.001
    lambda_interest: float = 0.005
    lambda_uncertainty: float = 0.02
    lambda_final: float = 0.005
    lambda_codebook: float = 1.0
    use_content: bool = True
    use_denoising: bool = True

    def __post_init__(self) -> None:
        at_least_one(self, "hidden", "inner", "layers", "time_width", "steps", "clusters", "experts")
        whole_heads(self.hidden, self.heads)
        probabilities(self, "attention_dropout", "hidden_dropout", "denoiser_dropout")
        ordered = 0 < self.beta_start <= self.beta_end < 1
        rule = f"it must be above 0 and at most beta_end ({self.beta_end}), which is below 1"
        require(ordered, "beta_start", self.beta_start, rule)
        require(1 <= self.start <= self.steps, "start", self.start, f"it must be in 1..steps ({self.steps})")
        picked = 1 <= self.top_experts <= self.experts
        require(picked, "top_experts", self.top_experts, f"it must be in 1..experts ({self.experts})")
        require(0 <= self.final_mix <= 1, "final_mix", self.final_mix, "it must be in 0..1")
        for name in ("domain", "interest", "uncertainty", "final", "codebook"):
            value = getattr(self, f"lambda_{name}")
            require(value >= 0, f"lambda_{name}", value, "it must be 0 or more")

    @property
    def needs(self) -> tuple[ContentField, ...]:
        return ("text", "visual")
