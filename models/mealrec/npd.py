"""NPD, noise-unconditional preference denoising (paper, section 4.4): g(x_t, z_0 estimate, h_L) -> x_0 estimate.

The network does not get the timestep: it has to infer the noise level from how well preference and content agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.dropout import Dropout
from models.nn.transformer import zero_weights
from models.options.mealrec import NPDOptions


class PreferenceDenoiser(nn.Module):
    """What g adds to x_t: a linear layer, and one pre-LN self-attention block over [W_x x_t; W_v z_1..K; W_h h_L],
    read at the preference token (D18). Both start at zero, so that training starts with the backbone as it is.

    Queries, output and feed-forward are computed for the preference token alone. This changes no result.
    """

    def __init__(self, hidden: int, steps: int, visual: int, text: int, options: NPDOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.preference = nn.Linear(hidden, hidden)
        self.visual = nn.Linear(visual, hidden)
        self.text = nn.Linear(text, hidden)
        self.kind = nn.Parameter(torch.empty(3, hidden).normal_(std=0.02))
        self.frame = nn.Parameter(torch.empty(steps, hidden).normal_(std=0.02))
        self.norm_attention = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.norm_inner = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, options.inner * hidden)
        self.outer = nn.Linear(options.inner * hidden, hidden)
        self.dropout = Dropout(options.dropout)
        self.out = nn.Linear(hidden, hidden)
        self.linear = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x_BD: Tensor, z_BKV: Tensor, text_BH: Tensor) -> Tensor:
        """(B, D) noisy preference, (B, K, V) refined content, (B, H) text -> (B, D) what to add to x_t (Eq. 14)."""
        token = self.preference(x_BD) + self.kind[0]
        frames = self.visual(z_BKV) + self.kind[1] + self.frame
        title = self.text(text_BH) + self.kind[2]
        normed = self.norm_attention(torch.cat([token[:, None], frames, title[:, None]], dim=1))
        key, value = self.key_value(normed).chunk(2, dim=-1)
        context = F.scaled_dot_product_attention(
            self._split(self.query(normed[:, :1])), self._split(key), self._split(value)
        )
        token = token + self.dropout(self.attention_out(context.transpose(1, 2).reshape(x_BD.shape)))
        inner = F.gelu(self.inner(self.norm_inner(token)))
        return self.linear(x_BD) + self.out(token + self.dropout(self.outer(inner)))  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Add nothing at first."""
        zero_weights(self.out)
        nn.init.zeros_(self.linear.weight)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
