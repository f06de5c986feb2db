"""Options of DMMD4SR."""

from __future__ import annotations

from dataclasses import dataclass

from models.options.base import ContentField, SystemOptions, at_least_one, probabilities, require, whole_heads


@dataclass(frozen=True)
class DMMD4SROptions(SystemOptions):
    """steps, beta_*: settings of every diffusion. start: the step at which the reverse chains start.

    clusters: number of centres of histories. id_weight, cluster_weight: weights in the condition of level 2. experts,
    top_experts: number of experts of level 3, and how many of them are used per token. final_mix: share of level 4's
    output in the input of the encoder. lambda_*: weights of the losses domain (level 1), interest (level 2),
    uncertainty (KL, level 3), final (level 4) and codebook (centres near their members). For ablations: use_content
    False leaves IDs alone, use_denoising False leaves level 3 alone.
    """

    hidden: int = 64
    inner: int = 256
    layers: int = 2
    heads: int = 2
    attention_dropout: float = 0.5
    hidden_dropout: float = 0.5
    denoiser_dropout: float = 0.5
    time_width: int = 16
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
