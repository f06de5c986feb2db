"""DMMD4SR: diffusion denoises text and video at several levels before they are added to the IDs (Lu and Yin 2025).

Level 1 removes the domain shift of each modality's encoder. Level 2 removes content that the user's interest does not
support. Level 3 fuses the modalities under uncertainty. Level 4 denoises the fused sequence, and a causal encoder reads
the result. Written from facts of the released code; docs/fidelity.md lists the differences. N: kept tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.contract import Batch, ModelContext
from models.dmmd4sr.layers import ExpertFusion, InterestGate, TokenDenoiser, Uncertain
from models.nn.content import ContentInput
from models.nn.diffusion import Diffusion
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32
from models.nn.quantise import SequenceQuantiser, codebook_loss, newest_last, oldest_first
from models.nn.transformer import CausalEncoder, init_weights
from models.options.dmmd4sr import DMMD4SROptions

_MODALITIES = ("text", "visual")


@dataclass
class _Pass:
    """One pass over a batch: the random numbers that it uses, and the values that the losses need afterwards.

    noise: (N, D) per denoiser, and in training also for the sample of each modality. seen: (N, D) input of each
    denoiser. divergence: (N,) KL per modality. identity_BLD, centre_BLD: ID vectors of the history, and their centre.
    """

    batch: Batch
    layout: Layout
    noise: dict[str, Tensor]
    seen: dict[str, Tensor] = field(default_factory=dict)
    divergence: list[Tensor] = field(default_factory=list)
    identity_BLD: Tensor | None = None
    centre_BLD: Tensor | None = None

    def row_mean(self, value_N: Tensor) -> Tensor:
        """Scalar: mean over each row's real tokens, then over rows, so that padding and other rows do not matter."""
        row_N = self.layout.row()
        length_N = self.batch.length[row_N]
        weight_N = (self.layout.position() < length_N) / (length_N * self.layout.rows)
        return (value_N * weight_N).sum()


class DMMD4SR(Backbone):
    """Adds denoised text and video to the IDs, encodes the sequence, and ranks by dot product with the ID table.

    Inference "draw" samples level 3's distributions as training does, keyed by user and position; "mean" does not.
    """

    def __init__(self, options: DMMD4SROptions, context: ModelContext) -> None:
        super().__init__(context, options.hidden)
        self.options = options
        self.noise = KeyedNoise(context.seed)
        self.diffusion = Diffusion("linear", options.steps, options.beta_start, options.beta_end)
        self.encoder = CausalEncoder(
            context.max_length, options.hidden, options.inner, options.layers, options.heads,
            options.attention_dropout, options.hidden_dropout,
        )  # fmt: skip
        if options.use_content:
            self._build_content(context)
        if options.use_content and options.use_denoising:
            self._build_denoisers(context)
        self.loss_weights = self._weights()
        self.inference_choices = ("draw", "mean") if options.use_content else ("default",)
        self.inference = self.inference_choices[0]
        self.apply(init_weights)

    def _build_content(self, context: ModelContext) -> None:
        hidden = self.options.hidden
        self.content = nn.ModuleDict(
            {name: ContentInput(context.table, name, self.options.scale) for name in ("text", "visual")}
        )
        self.project = nn.ModuleDict({name: nn.Linear(context.table.widths[name][0], hidden) for name in _MODALITIES})
        self.uncertain = nn.ModuleDict({name: Uncertain(hidden) for name in _MODALITIES})
        self.fusion = ExpertFusion(hidden, self.options.experts, self.options.top_experts)

    def _build_denoisers(self, context: ModelContext) -> None:
        o = self.options
        names = [f"{name}_{level}" for level in ("domain", "interest") for name in _MODALITIES] + ["final"]
        self.denoisers = nn.ModuleDict(
            {name: TokenDenoiser(o.hidden, o.steps, o.time_width, o.denoiser_dropout) for name in names}
        )
        self.quantiser = SequenceQuantiser(context.max_length, o.hidden, o.clusters)
        self.gate = InterestGate(o.hidden)

    def _weights(self) -> dict[str, float]:
        o = self.options
        weights = {"ranking": 1.0}
        if o.use_content:
            weights["uncertainty"] = o.lambda_uncertainty
        if o.use_content and o.use_denoising:
            weights |= {"domain": o.lambda_domain, "interest": o.lambda_interest,
                        "final": o.lambda_final, "codebook": o.lambda_codebook}  # fmt: skip
        return weights

    def encode(self, batch: Batch) -> Tensor:
        return self._encode(self._begin(batch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        state = self._begin(batch)
        losses = {"ranking": self.ranking_loss(self._encode(state), batch)}
        if state.divergence:
            losses["uncertainty"] = state.row_mean(torch.stack(state.divergence).sum(dim=0))
        if state.centre_BLD is not None and state.identity_BLD is not None:
            real_BL = batch.history != 0
            losses["codebook"] = codebook_loss(state.centre_BLD, state.identity_BLD, real_BL)
            losses |= self._denoising_losses(state)
        return losses

    def _begin(self, batch: Batch) -> _Pass:
        """Draw the noise of a pass, keyed by row and position; a denoiser's loss and its chain use the same noise."""
        layout = Layout.of(batch)
        key_N = batch.key[layout.row()] * layout.length + layout.position()
        shape, noise = (self.options.hidden,), {}
        if self.options.use_content and self.options.use_denoising:
            for name, stream in (("text", Stream.TEXT_NOISE), ("visual", Stream.VISUAL_NOISE)):
                drawn = self.noise.normal(key_N, (2, *shape), stream).unbind(1)
                noise[f"{name}_domain"], noise[f"{name}_interest"] = drawn
            noise["final"] = self.noise.normal(key_N, shape, Stream.FUSION_NOISE)
        if self.options.use_content and (self.training or self.inference == "draw"):
            drawn = self.noise.normal(key_N, (2, *shape), Stream.UNCERTAINTY).unbind(1)
            noise |= dict(zip(_MODALITIES, drawn, strict=True))
        return _Pass(batch, layout, noise)

    def _encode(self, state: _Pass) -> Tensor:
        """(B, D) output of the encoder for the fused sequence, in training and at evaluation."""
        layout = state.layout
        item_ND = self.item_embedding(layout.flatten(state.batch.history))
        token_ND = self.encoder.embed(item_ND, layout)
        if self.options.use_content:
            content = {name: self._project(name, state) for name in _MODALITIES}
            if self.options.use_denoising:
                content = self._denoise(content, self._condition(item_ND, state), state)
            drawn = [self._draw(name, content[name], state) for name in _MODALITIES]
            token_ND = token_ND + self.fusion(*drawn)
            if self.options.use_denoising:
                token_ND = torch.lerp(
                    at_least_float32(token_ND), self._chain("final", token_ND, state), self.options.final_mix
                )
        return self.encoder.contextualise(token_ND, layout)

    def _project(self, name: str, state: _Pass) -> Tensor:
        """(N, D) unit vectors: the projected content of each token's item."""
        content = self.content[name](state.layout.flatten(state.batch.history))
        return F.normalize(at_least_float32(self.project[name](content)), dim=1)

    def _condition(self, item_ND: Tensor, state: _Pass) -> Tensor:
        """(N, D) condition of level 2: weighted sum of the item's ID vector and the centre of the history's cluster."""
        layout, batch, o = state.layout, state.batch, self.options
        real_N = layout.flatten(batch.history) != 0
        state.identity_BLD = layout.pad(item_ND * real_N[:, None])
        gumbel = self.noise.gumbel(batch.key, (o.clusters,), Stream.CLUSTER) if self.training else None
        read_BLD = newest_last(state.identity_BLD, batch.length)
        state.centre_BLD = oldest_first(self.quantiser(read_BLD, gumbel), batch.length)
        return o.id_weight * item_ND + o.cluster_weight * layout.flatten(state.centre_BLD)

    def _denoise(self, content: dict[str, Tensor], condition_ND: Tensor, state: _Pass) -> dict[str, Tensor]:
        """Levels 1 and 2 of each modality; one gate serves both."""
        denoised = {}
        for name, x_ND in content.items():
            shifted_ND = self._chain(f"{name}_domain", x_ND, state)
            denoised[name] = self._chain(f"{name}_interest", self.gate(shifted_ND, condition_ND), state)
        return denoised

    def _chain(self, name: str, x_ND: Tensor, state: _Pass) -> Tensor:
        """(N, D): noises `x_ND` to step `start`, then runs the deterministic reverse chain of denoiser `name`."""
        x_ND = at_least_float32(x_ND)
        state.seen[name] = x_ND
        start = self.options.start
        t_N = torch.full((1,), start, device=x_ND.device).expand(x_ND.shape[0])
        noised_ND = self.diffusion.corrupt(x_ND, t_N, state.noise[name])
        return self.diffusion.reverse(noised_ND, start, self.denoisers[name])

    def _draw(self, name: str, x_ND: Tensor, state: _Pass) -> Tensor:
        """(N, D): a sample of level 3's distribution, or its mean where the pass has no noise for it."""
        drawn_ND, divergence_N = self.uncertain[name](x_ND, state.noise.get(name))
        state.divergence.append(divergence_N)
        return drawn_ND  # type: ignore[no-any-return]

    def _denoising_losses(self, state: _Pass) -> dict[str, Tensor]:
        """Squared error of every denoiser at one random step per row; each modality and level 4 have their own step."""
        streams = {"text": Stream.TEXT_STEP, "visual": Stream.VISUAL_STEP, "final": Stream.FUSION_STEP}
        row_N = state.layout.row()
        step_N = {name: self.noise.integers(state.batch.key, 1, self.options.steps, stream)[row_N]
                  for name, stream in streams.items()}  # fmt: skip
        losses: dict[str, Tensor] = {}
        for name, x_ND in state.seen.items():
            part, _, level = name.rpartition("_")
            t_N = step_N[part or level]
            noised_ND = self.diffusion.corrupt(x_ND, t_N, state.noise[name])
            error_N = (at_least_float32(self.denoisers[name](noised_ND, t_N)) - x_ND).square().mean(dim=1)
            losses[level] = losses.get(level, 0.0) + state.row_mean(error_N)
        return losses
