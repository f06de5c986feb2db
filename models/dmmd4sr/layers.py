"""The layers of DMMD4SR: its denoiser, its gate for content that the user's interest does not support, its fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.diffusion import timestep_embedding
from models.nn.dropout import Dropout
from models.nn.precision import at_least_float32


class TokenDenoiser(nn.Module):
    """x_t, t -> estimate of x_0, for each token alone: W_2 tanh(W_1 [dropout(x_t); sinusoids of t] + b_1) + b_2.

    W_1 is two layers, one for the state and one for the step, so that the step's part is computed once for all tokens.
    """

    sinusoids: Tensor

    def __init__(self, hidden: int, steps: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.state = nn.Linear(hidden, hidden)
        self.time = nn.Linear(time_width, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)
        sinusoids = timestep_embedding(torch.arange(steps + 1), time_width)
        self.register_buffer("sinusoids", sinusoids, persistent=False)

    def forward(self, x_ND: Tensor, t: Tensor | int) -> Tensor:
        """(N, D) states at step `t` (one int for all tokens, or (N,); in 0..T) -> (N, D)."""
        time = self.time(self.sinusoids[t]) if isinstance(t, int) else self.time(self.sinusoids).index_select(0, t)
        return self.out(torch.tanh(self.state(self.dropout(x_ND)) + time))  # type: ignore[no-any-return]


class InterestGate(nn.Module):
    """(1 - g) x + g MLP([x; c]), g = sigmoid(Linear([x; c])): replaces parts of x that do not fit the condition c."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )

    def forward(self, x_ND: Tensor, condition_ND: Tensor) -> Tensor:
        """(N, D) tokens and (N, D) conditions -> (N, D)."""
        joined = torch.cat([x_ND, condition_ND], dim=1)
        return x_ND + torch.sigmoid(self.gate(joined)) * (self.mlp(joined) - x_ND)  # type: ignore[no-any-return]


class Uncertain(nn.Module):
    """A normal distribution N(mu, sigma^2) per token; mu and log sigma are linear functions of the token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mean = nn.Linear(hidden, hidden)
        self.log_scale = nn.Linear(hidden, hidden)

    def forward(self, x_ND: Tensor, noise_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N, D) sample by `noise_ND` (standard normal; None: the mean), and (N,) KL divergence from N(0, 1).

        The divergence is a mean over dimensions, as in every other loss. With a sum, the samples would lose all
        information (docs/fidelity.md).
        """
        mean, log_scale = at_least_float32(self.mean(x_ND)), at_least_float32(self.log_scale(x_ND))
        scale = log_scale.exp()
        divergence_N = 0.5 * (mean.square() + scale.square() - 1 - 2 * log_scale).mean(dim=1)
        return (mean if noise_ND is None else mean + scale * noise_ND), divergence_N


class ExpertFusion(nn.Module):
    """ReLU(LN(Linear([t; v]))), where t and v are each a mixture of `top` out of E linear experts of their modality.

    One gate serves both modalities. Its softmax runs over the `top` chosen experts, which equals the softmax over all
    experts, cut and renormalised. All experts are computed: at this width, one product is cheaper than sorting tokens.
    """

    def __init__(self, hidden: int, experts: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.gate = nn.Linear(hidden, experts)
        self.text = nn.Linear(hidden, experts * hidden)
        self.visual = nn.Linear(hidden, experts * hidden)
        self.join = nn.Linear(2 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, text_ND: Tensor, visual_ND: Tensor) -> Tensor:
        """(N, D) tokens of both modalities -> (N, D)."""
        mixed = [self._mix(self.text, text_ND), self._mix(self.visual, visual_ND)]
        return F.relu(self.norm(self.join(torch.cat(mixed, dim=1))))

    def _mix(self, experts: nn.Linear, x_ND: Tensor) -> Tensor:
        logits_NE = at_least_float32(self.gate(x_ND))
        picked = logits_NE.topk(self.top, dim=1)
        weight_NE = torch.zeros_like(logits_NE).scatter(1, picked.indices, picked.values.softmax(dim=1))
        made_NED = experts(x_ND).unflatten(1, (weight_NE.shape[1], -1))
        return (weight_NE[:, :, None] * made_NED).sum(dim=1)  # type: ignore[no-any-return]
