"""TCD, temporal-guided content diffusion (paper, section 4.3): refines the last video's content sequence.

z_0 = TempAttnEnc(F_L + P) (Eq. 6) is corrupted to z_t. A U-Net f(z_t, t, c_v) predicts z_0 from it (Eq. 8), given the
recency-weighted context c_v of the user's videos (Eq. 7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.diffusion import Diffusion, timestep_embedding
from models.nn.dropout import Dropout
from models.nn.layout import Layout
from models.nn.transformer import zero_weights
from models.options.mealrec import TCDOptions


class TemporalAttention(nn.Module):
    """z_0 = LN(x + MHSA(x)), x = F_L + P (Eq. 6): bidirectional over the K steps of one video, no feed-forward (D6).

    The last LayerNorm has no parameters, so that L_T cannot be reduced by shrinking z_0.
    """

    def __init__(self, steps: int, width: int, options: TCDOptions) -> None:
        super().__init__()
        inner = options.attention_width or width
        self.heads = math.gcd(inner, options.attention_heads)
        self.position = nn.Parameter(torch.empty(steps, width).normal_(std=0.02))
        self.query_key_value = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)
        self.dropout = Dropout(options.dropout)

    def forward(self, sequence_BKV: Tensor) -> Tensor:
        """(B, K, V) -> (B, K, V) with zero mean and unit variance per step."""
        x = sequence_BKV + self.position
        projected = self.query_key_value(x).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return F.layer_norm(x + self.dropout(self.out(context)), (x.shape[2],))


def recency_context(visual_NV: Tensor, layout: Layout, length_B: Tensor, decay: float) -> Tensor:
    """(B, V) context c_v: the mean of the history's video vectors, with weights that decay with age (Eq. 7).

    visual_NV: (N, V) vectors of the kept tokens. Only real positions take part (D9).
    """
    age_N = length_B[layout.row()] - 1 - layout.position()
    weight_N = torch.where(age_N >= 0, torch.exp(-decay * age_N.float()), 0.0)
    share_N = weight_N / layout.sum(weight_N[:, None])[layout.row(), 0]
    return layout.sum(visual_NV * share_N[:, None])


class StepConv(nn.Module):
    """A convolution of width 3 over the K steps of (B, K, C), written as one matrix product over unfolded windows.

    K is about 5 and C is in the hundreds, so unfolding costs little. On a CPU, a matrix product is twice as fast as a
    convolution kernel over such a short axis.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, 3 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # PyTorch's default for convolutions (D23)

    def forward(self, x_BKC: Tensor) -> Tensor:
        """(B, K, inputs) -> (B, ceil(K / stride), outputs)."""
        windows = F.pad(x_BKC, (0, 0, 1, 1)).unfold(1, 3, self.stride)
        return F.linear(windows.flatten(2), self.weight, self.bias)


class StepNorm(nn.GroupNorm):
    """Group normalisation of (B, K, C): statistics over the steps and the channels of a group."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(8, channels), channels)

    def forward(self, x_BKC: Tensor) -> Tensor:
        return super().forward(x_BKC.transpose(1, 2)).transpose(1, 2)


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, plus the timestep; norm, SiLU, dropout and convolution; plus a skip connection."""

    def __init__(self, inputs: int, outputs: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = StepNorm(inputs)
        self.conv_in = StepConv(inputs, outputs)
        self.time = nn.Linear(time_width, outputs)
        self.norm_out = StepNorm(outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = StepConv(outputs, outputs)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x_BKC: Tensor, time_BE: Tensor) -> Tensor:
        """(B, K, inputs) states and (B, E) timestep vectors -> (B, K, outputs)."""
        hidden = self.conv_in(F.silu(self.norm_in(x_BKC))) + self.time(time_BE)[:, None]
        hidden = self.conv_out(self.dropout(F.silu(self.norm_out(hidden))))
        return self.skip(x_BKC) + hidden  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Each step attends to the context c_v, and to a learned null token.

    If c_v were the only key, the softmax would be 1, and the layer would add the same vector to every step. With the
    null token, the softmax is a gate per step that controls how much of the context a frame gets (decision D8).
    `null_token=False` leaves the null token out.
    """

    def __init__(self, channels: int, context: int, null_token: bool) -> None:
        super().__init__()
        self.norm = StepNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context, 2 * channels)
        self.null = nn.Parameter(torch.empty(2 * channels).normal_(std=0.02)) if null_token else None
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BKC: Tensor, context_BV: Tensor) -> Tensor:
        """(B, K, C) states and (B, V) context -> (B, K, C)."""
        token = self.key_value(context_BV)[:, None]
        if self.null is not None:
            token = torch.cat([token, self.null.to(token.dtype).expand(token.shape)], dim=1)
        key, value = token.chunk(2, dim=-1)
        query = self.query(self.norm(x_BKC))
        if torch.compiler.is_exporting():  # ONNX knows attention with a dimension of heads alone
            attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None]).squeeze(1)
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        return x_BKC + self.out(attended)  # type: ignore[no-any-return]


class ContentDenoiser(nn.Module):
    """f(z_t, t, c_v) -> z_0 estimate (Eq. 8): sqrt(ab_t) z_t + sqrt(1 - ab_t) (A z_t + C c_v) + U-Net(z_t, t, c_v).

    All but the first term start at zero. So f starts as the best multiple of its noisy input, and learns what to take
    off it (D7). Noise is in every dimension of the content, and the U-Net is narrow: what it cannot pass, A and C can.
    """

    def __init__(self, width: int, context: int, diffusion: Diffusion, options: TCDOptions) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.state = nn.Linear(width, width)
        self.context = nn.Linear(context, width, bias=False)
        self.unet = ContentUNet(width, context, options)
        nn.init.zeros_(self.context.weight)
        for layer in (self.state, self.unet.write):
            zero_weights(layer)

    def forward(self, z_BKV: Tensor, t_B: Tensor, context_BV: Tensor) -> Tensor:
        """(B, K, V) noisy sequence, (B,) steps, (B, V) context -> (B, K, V) estimate of the clean sequence."""
        signal, spread = self.diffusion.levels(t_B, z_BKV)
        linear = self.state(z_BKV) + self.context(context_BV)[:, None]
        return signal * z_BKV + spread * linear + self.unet(z_BKV, t_B, context_BV)  # type: ignore[no-any-return]


class ContentUNet(nn.Module):
    """A U-Net over the K steps with one stride-2 level (D7).

    Order: input projection, ResBlock, stride, ResBlock, (ResBlock, cross-attention, ResBlock), upsampling to K steps,
    concatenation with the first ResBlock's output, ResBlock, output projection.
    """

    def __init__(self, width: int, context: int, options: TCDOptions) -> None:
        super().__init__()
        outer, inner = options.channels
        time = 4 * outer
        self.time_width = outer
        self.time = nn.Sequential(nn.Linear(outer, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.read = nn.Linear(width, outer)
        self.down = ResBlock(outer, outer, time, options.dropout)
        self.stride = StepConv(outer, outer, stride=2)
        self.inner = ResBlock(outer, inner, time, options.dropout)
        self.middle_in = ResBlock(inner, inner, time, options.dropout)
        self.attention = CrossAttention(inner, context, options.null_token)
        self.middle_out = ResBlock(inner, inner, time, options.dropout)
        self.up = ResBlock(inner + outer, outer, time, options.dropout)
        self.norm = StepNorm(outer)
        self.write = nn.Linear(outer, width)

    def forward(self, z_BKV: Tensor, t_B: Tensor, context_BV: Tensor) -> Tensor:
        """(B, K, V) noisy sequence, (B,) steps, (B, V) context -> (B, K, V)."""
        time = self.time(timestep_embedding(t_B, self.time_width))
        skip = self.down(self.read(z_BKV), time)
        x = self.middle_in(self.inner(self.stride(skip), time), time)
        x = self.middle_out(self.attention(x, context_BV), time)
        nearest = torch.arange(skip.shape[1], device=x.device) * x.shape[1] // skip.shape[1]
        x = self.up(torch.cat([x[:, nearest], skip], dim=2), time)
        return self.write(F.silu(self.norm(x)))  # type: ignore[no-any-return]
