"""TedRec: text-ID semantic fusion in the frequency domain (Xu et al. 2024), from the facts of its released code.

Deviations (docs/fidelity.md): padded positions are zero before and after the FFT, so that the vector of a history does
not depend on a random padding row; and only real positions are computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.contract import Batch, ModelContext
from models.nn.content import ContentInput
from models.nn.dropout import dropout
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32
from models.nn.transformer import CausalEncoder, init_weights
from models.options.base import Similarity
from models.options.tedrec import TedRecOptions


class TextAdaptor(nn.Module):
    """Mixture of experts from text width H to D: expert e gives W_e (dropout(x) - b_e); b_e is learned per position.

    The gate is a dense softmax over experts. In training, normal noise with a learned scale is added to its logits.
    """

    def __init__(self, width: int, hidden: int, length: int, experts: int, rate: float) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.empty(experts, width, hidden).normal_(std=0.02))
        self.shift = nn.Parameter(torch.zeros(length, experts, width))
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.gate_noise = nn.Parameter(torch.zeros(width, experts))
        self.dropout = rate

    def forward(self, text_NH: Tensor, position_N: Tensor, noise_NE: Tensor | None) -> Tensor:
        """(N, H) text and (N,) positions -> (N, D); `noise_NE` is (N, E) standard normal in training, else None.

        Computes sum_e g_e W_e (drop_e(x) - b_e) as two products: the gated inputs times the stacked experts, minus the
        gates times the projected shifts, which depend on the position alone.
        """
        logits_NE = text_NH @ self.gate
        if noise_NE is not None:
            logits_NE = logits_NE + noise_NE * (F.softplus(text_NH @ self.gate_noise) + 0.01)
        gate_NE = logits_NE.softmax(dim=-1)
        gated_NEH = dropout(gate_NE[:, :, None] * text_NH[:, None], self.dropout, self.training)
        shift_LED = torch.einsum("leh,ehd->led", self.shift, self.experts)
        at_position = F.one_hot(position_N, self.shift.shape[0]).to(gate_NE.dtype)
        gate_NLE = at_position[:, :, None] * gate_NE[:, None]
        return gated_NEH.flatten(1) @ self.experts.flatten(0, 1) - gate_NLE.flatten(1) @ shift_LED.flatten(0, 1)


class FrequencyFusion(nn.Module):
    """Fuses ID and text sequences by products of their spectra along the history (orthonormal real DFT).

    It sums two parts, each with a gate per position: the IDs through a learned complex filter, and the product of both
    spectra (circular convolution). Histories are short, so the transform is a matrix product, which is faster than an
    FFT and needs neither complex numbers nor an FFT library. It always runs in float32 at least, because half precision
    would round the phases.
    """

    transform: Tensor
    inverse: Tensor

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        # a complex number is stored as two reals: ZeRO flattens parameters, and cannot do so with complex ones
        self.filter = nn.Parameter(0.02 * torch.randn(1, length // 2 + 1, hidden, 2))
        self.item_gate = nn.Linear(hidden, 1)
        self.fuse_gate = nn.Linear(hidden, 1)
        transform, inverse = real_dft(length)
        self.register_buffer("transform", transform, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, item_BLD: Tensor, text_BLD: Tensor) -> Tensor:
        """(B, L, D) ID and text vectors, zero at padding -> (B, L, D) fused, in float32 at least."""
        with torch.autocast(item_BLD.device.type, enabled=False):
            item, text = self._spectrum(item_BLD), self._spectrum(text_BLD)
            filtered = self._product(item, at_least_float32(self.filter).unbind(-1))
            fused = self._product(item, text)
            gate_item = torch.sigmoid(
                F.linear(filtered, at_least_float32(self.item_gate.weight), at_least_float32(self.item_gate.bias))
            )
            gate_fuse = torch.sigmoid(
                F.linear(fused, at_least_float32(self.fuse_gate.weight), at_least_float32(self.fuse_gate.bias))
            )
            return 2 * (filtered * gate_item + fused * gate_fuse)

    def _spectrum(self, x_BLD: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D) -> real and imaginary part of the spectrum, (B, L // 2 + 1, D) each."""
        x_BLD = at_least_float32(x_BLD)
        return (self.transform.to(x_BLD.dtype) @ x_BLD).chunk(2, dim=1)

    def _product(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        """(B, L, D) inverse transform of the product of two spectra."""
        real, imaginary = a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
        return self.inverse.to(real.dtype) @ torch.cat([real, imaginary], dim=1)


def real_dft(length: int) -> tuple[Tensor, Tensor]:
    """The orthonormal real DFT and its inverse as matrices (2F, L) and (L, 2F), with F = L // 2 + 1.

    The first gives F real parts and then F imaginary parts.
    """
    frequency, time = torch.arange(length // 2 + 1, dtype=torch.float64), torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * frequency[:, None] * time / length
    forward = torch.cat([angle.cos(), -angle.sin()]) / math.sqrt(length)
    # all frequencies count twice, for themselves and their conjugates, except 0 and, for even lengths, the highest
    twice = torch.full_like(frequency, 2.0)
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    back = torch.cat([twice[:, None] * angle.cos(), -twice[:, None] * angle.sin()]).T / math.sqrt(length)
    return forward.float(), back.float().contiguous()


class TedRec(Backbone):
    """SASRec over fused text and ID sequences; cosine similarity with the ID table."""

    similarity: Similarity = "cosine"
    loss_weights = {"ranking": 1.0}  # noqa: RUF012 - read-only by contract

    def __init__(self, options: TedRecOptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden, options.ranking)
        self.similarity, self.temperature = options.similarity, options.temperature
        self.noise = KeyedNoise(context.seed)
        self.text = ContentInput(context.table, "text", options.scale)
        self.encoder = CausalEncoder(
            context.max_length, options.hidden, options.inner, options.layers, options.heads,
            options.attention_dropout, options.hidden_dropout,
        )  # fmt: skip
        self.fusion = FrequencyFusion(context.max_length, options.hidden)
        if options.filter_start == "identity":
            with torch.no_grad():
                self.fusion.filter[..., 0] += 1  # the real part
        self.apply(init_weights)
        self.adaptor = TextAdaptor(
            self.text.width[0], options.hidden, context.max_length, options.experts, options.adaptor_dropout
        )

    def encode(self, batch: Batch) -> Tensor:
        layout = Layout.of(batch)
        item_ND = self.item_embedding(layout.flatten(batch.history))
        text_NH = self.text(layout.flatten(batch.history))
        noise = self._gate_noise(batch, layout) if self.training else None
        text_ND = self.adaptor(text_NH, layout.position(), noise)
        real = (layout.flatten(batch.history) != 0)[:, None]
        fused_BLD = self.fusion(layout.pad(item_ND * real), layout.pad(text_ND * real))
        return self.encoder(layout.flatten(fused_BLD), layout)  # type: ignore[no-any-return]

    def _gate_noise(self, batch: Batch, layout: Layout) -> Tensor:
        """(N, E) gate noise, keyed by row, so that it does not depend on the batch."""
        experts = self.adaptor.gate.shape[1]
        return layout.flatten(self.noise.normal(batch.key, (layout.length, experts), Stream.GATE_NOISE))
