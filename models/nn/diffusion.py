"""The diffusion process that all denoisers share: forward corruption and reverse posterior (paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.options.base import ScheduleKind


def betas(kind: ScheduleKind, steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """(T,) float64 variances beta_1..beta_T.

    "linear" is not rescaled by 1000/T, so that more steps mean stronger corruption (decision D11). "cosine" is that of
    Nichol and Dhariwal, clipped at .999. "trunc_lin" is that of DiffuRec: linear, with both ends rescaled by 1000/T and
    raised by .01; if the upper end would exceed 1, it is 1/T + .01 instead.
    """
    if kind == "trunc_lin":
        scale = 1000 / steps
        beta_start, beta_end = scale * beta_start + 0.01, scale * beta_end + 0.01
        return torch.linspace(
            beta_start, beta_end if beta_end <= 1 else scale * 1e-3 + 0.01, steps, dtype=torch.float64
        )
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    position = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = torch.cos((position + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


class Diffusion:
    """q(x_t | x_0) and q(x_s | x_t, x_0) for steps 0..T, where step 0 is the clean state.

    The arguments are those of `betas`. The coefficients are float32 tensors and not buffers of a module, so that a
    cast of the module to bfloat16 does not round them.
    """

    def __init__(self, kind: ScheduleKind, steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        self.steps = steps
        beta = betas(kind, steps, beta_start, beta_end)
        self._alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])
        # plain numbers for the chain: torch.export cannot follow a number that is read out of a tensor
        self._products: list[float] = self._alpha_bar.tolist()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _signal_noise(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(T + 1,) sqrt(alpha_bar) and sqrt(1 - alpha_bar) on `device`."""
        if device not in self._on_device:
            pair = (self._alpha_bar.sqrt(), (1 - self._alpha_bar).sqrt())
            self._on_device[device] = (pair[0].float().to(device), pair[1].float().to(device))
        return self._on_device[device]

    def corrupt(self, x_0: Tensor, t_B: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise (Eq. 2). x_0, noise: (B, ...); t_B: (B,) steps in 0..T."""
        signal, spread = self.levels(t_B, x_0)
        return signal * x_0 + spread * noise

    def levels(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ab_t) and sqrt(1 - ab_t) of (B,) steps, in a shape that multiplies `like` (B, ...)."""
        signal, spread = self._signal_noise(like.device)
        shape = (-1,) + (1,) * (like.dim() - 1)
        return signal[t_B].view(shape), spread[t_B].view(shape)

    def clean(self, x_t: Tensor, t_B: Tensor, noise: Tensor) -> Tensor:
        """The x_0 that `corrupt` would turn into x_t with this noise; it turns a noise prediction into an x_0 one."""
        signal, spread = self.levels(t_B, x_t)
        return (x_t - spread * noise) / signal

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: int, s: int) -> Tensor:
        """Mean of q(x_s | x_t, x_0) for s < t (Eq. 9 without its noise, decision D13); s = 0 gives x_0 itself."""
        ab_t, ab_s = self._products[t], self._products[s]
        ratio = ab_t / ab_s
        return (math.sqrt(ab_s) * (1 - ratio) / (1 - ab_t)) * x_0 + (math.sqrt(ratio) * (1 - ab_s) / (1 - ab_t)) * x_t

    def reverse(self, x_t: Tensor, start: int, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The deterministic reverse chain x_start -> ... -> x_0; `predict(x_t, t)` estimates x_0 (Eqs. 10 and 13)."""
        for t in range(start, 0, -1):
            x_t = self.posterior_mean(predict(x_t, t), x_t, t, t - 1)
        return x_t


def timestep_embedding(t_B: Tensor, width: int) -> Tensor:
    """(B,) steps -> (B, width) sinusoids with wavelengths from 2 pi to 20,000 pi."""
    half = (width + 1) // 2
    frequency = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t_B.device))
    angle = t_B.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)[:, :width]
