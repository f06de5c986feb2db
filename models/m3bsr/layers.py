"""The layers of M3BSR: a denoiser conditioned on another sequence, and interest experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.m3bsr.parts import Part
from models.nn.diffusion import Diffusion, timestep_embedding
from models.nn.dropout import Dropout, attention
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32
from models.nn.transformer import LAYER_NORM_EPS, CausalEncoder


def unit(x_ND: Tensor) -> Tensor:
    """(N, D) tokens with zero mean and unit variance: they have the scale of the noise, and no loss can shrink them."""
    return F.layer_norm(x_ND, x_ND.shape[-1:], eps=LAYER_NORM_EPS)


class PartAttention(nn.Module):
    """Each token of one part attends to all tokens of another part in the same row: (n, D), (m, D) -> (n, D)."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def forward(self, x_nD: Tensor, part: Part, context_mD: Tensor, context: Part) -> Tensor:
        query = part.layout.pad(self.query(x_nD))
        key, value = context.layout.pad(self.key_value(context_mD)).chunk(2, dim=-1)
        mask_BL = torch.arange(context.layout.length, device=x_nD.device) < context.length[:, None]
        read = attention(
            self._split(query), self._split(key), self._split(value), mask_BL[:, None, None],
            self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.out(part.layout.flatten(read.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.view(*x_BLD.shape[:2], self.heads, -1).transpose(1, 2)


class NoisePredictor(nn.Module):
    """x_t, t, condition -> the noise in x_t: x = LN(x_t + time), h = LN(x + attention to the condition), MLP(h).

    The MLP has no residual connection, because its output is noise and not a state.
    """

    sinusoids: Tensor

    def __init__(self, hidden: int, heads: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.time = nn.Linear(hidden, hidden)
        self.norm_input = nn.LayerNorm(hidden)
        self.attention = PartAttention(hidden, heads, dropout)
        self.dropout = Dropout(dropout)
        self.norm_read = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, 4 * hidden)
        self.outer = nn.Linear(4 * hidden, hidden)
        self.register_buffer("sinusoids", timestep_embedding(torch.arange(steps + 1), hidden), persistent=False)

    def forward(self, x_nD: Tensor, t_n: Tensor, part: Part, context_mD: Tensor, context: Part) -> Tensor:
        """(n, D) corrupted tokens at steps t_n in 0..T -> (n, D)."""
        x = self.norm_input(x_nD + self.time(self.sinusoids).index_select(0, t_n))
        read = self.norm_read(x + self.dropout(self.attention(x, part, context_mD, context)))
        return self.outer(self.dropout(F.relu(self.inner(read))))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """A diffusion over the tokens of one part, conditioned on the tokens of another part; it predicts the noise."""

    def __init__(
        self, predictor: NoisePredictor, diffusion: Diffusion, noise: KeyedNoise, streams: tuple[Stream, Stream]
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.diffusion = diffusion
        self.noise = noise
        self.streams = streams

    def forward(self, x_nD: Tensor, part: Part, context_mD: Tensor, context: Part) -> tuple[Tensor, Tensor]:
        """Training, at one random step per row: (n, D) -> (n, D) estimate of the clean tokens, and the scalar mean
        squared error of the noise."""
        t_n = self.noise.integers(part.key, 1, self.diffusion.steps, self.streams[0])[part.layout.row()]
        noise = part.normal(x_nD.shape[1], self.noise, self.streams[1])
        state = self.diffusion.corrupt(x_nD, t_n, noise)
        predicted = self.predictor(state, t_n, part, context_mD, context)
        error_n = (predicted.to(state.dtype) - noise).square().mean(dim=1)
        return self.diffusion.clean(state, t_n, predicted), (error_n * part.weight).sum()

    def reverse(self, x_nD: Tensor, part: Part, context_mD: Tensor, context: Part, steps: Sequence[int]) -> Tensor:
        """Evaluation: (n, D) -> (n, D). Corrupts the tokens to steps[0] with keyed noise, then denoises them from each
        of the descending `steps` to the next, and from the last to 0."""
        t_n = part.source.new_full(part.source.shape, steps[0])
        state = self.diffusion.corrupt(x_nD, t_n, part.normal(x_nD.shape[1], self.noise, self.streams[1]))
        for t, s in pairwise([*steps, 0]):
            t_n = torch.full_like(t_n, t)
            predicted = self.predictor(state, t_n, part, context_mD, context)
            state = self.diffusion.posterior_mean(self.diffusion.clean(state, t_n, predicted), state, t, s)
        return state


class InterestExperts(nn.Module):
    """One encoder per behaviour and modality, a common one over both behaviours, and a gate between the two kinds.

    user = g common + (1 - g) mean(specific), where g = sigmoid(MLP [outputs of all experts]).
    """

    def __init__(self, modalities: int, length: int, hidden: int, inner: int, layers: int, heads: int, dropout: float,
                 ) -> None:  # fmt: skip
        super().__init__()

        def encoder() -> CausalEncoder:
            return CausalEncoder(length, hidden, inner, layers, heads, dropout, dropout)

        self.shallow = nn.ModuleList(encoder() for _ in range(modalities))
        self.deep = nn.ModuleList(encoder() for _ in range(modalities))
        self.shallow_reads = PartAttention(hidden, heads, dropout)
        self.deep_reads = PartAttention(hidden, heads, dropout)
        self.common = encoder()
        self.gate = nn.Sequential(nn.Linear((2 * modalities + 1) * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(
        self, shallow: Sequence[Tensor], shallow_part: Part, deep: Sequence[Tensor], deep_part: Part, history: Layout
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n, D) per modality of both parts -> (B, D) interest and (B, E, D) outputs of the specific experts."""
        specific = [expert(x, shallow_part.layout) for expert, x in zip(self.shallow, shallow, strict=True)]
        specific += [expert(x, deep_part.layout) for expert, x in zip(self.deep, deep, strict=True)]
        common = self.common(self._both(_sum(shallow), shallow_part, _sum(deep), deep_part, history), history)
        gate = torch.sigmoid(self.gate(torch.cat([*specific, common], dim=1)))
        specific_BED = torch.stack(specific, dim=1)
        return torch.lerp(specific_BED.mean(dim=1), common, gate.to(common.dtype)), specific_BED

    def _both(self, shallow: Tensor, shallow_part: Part, deep: Tensor, deep_part: Part, history: Layout) -> Tensor:
        """(N, D) tokens of the history: each part attends to the other; an item in both parts gets the sum."""
        size = history.rows * history.length if history.token is None else len(history.token)
        tokens = shallow.new_zeros(size, shallow.shape[1])
        tokens = shallow_part.put(self.shallow_reads(shallow, shallow_part, deep, deep_part), tokens)
        return deep_part.put(self.deep_reads(deep, deep_part, shallow, shallow_part), tokens)


def _sum(tokens: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tokens)).sum(dim=0)


def mean_cosine(x_BED: Tensor) -> Tensor:
    """Scalar: mean cosine of the outputs of two different experts, over rows and pairs, in float32 at least.

    The sum over all pairs is computed as the squared norm of the sum of the unit vectors.
    """
    with torch.autocast(x_BED.device.type, enabled=False):
        x_BED = F.normalize(at_least_float32(x_BED), dim=2)
        experts = x_BED.shape[1]
        return (x_BED.sum(dim=1).square().sum(dim=1).mean() - experts) / (experts * (experts - 1))
