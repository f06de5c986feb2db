"""DiQDiff: DiffuRec's diffusion with quantised guidance and a contrastive loss (Mao et al. 2025), from its facts.

The target's embedding is noised and added to every token of the history. A transformer estimates the embedding at the
last token. Deviations are in docs/fidelity.md: no token attends to padding, the centres are learned, and the chain is
deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, SequenceModel
from models.losses.contrastive import uniformity
from models.losses.softmax import full_softmax_cross_entropy
from models.nn.diffusion import Diffusion, timestep_embedding
from models.nn.dropout import Dropout
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.quantise import SequenceQuantiser, codebook_loss, newest_last, oldest_first
from models.nn.transformer import LAYER_NORM_EPS, EncoderLayer
from models.options.diqdiff import DiQDiffOptions


class Approximator(nn.Module):
    """Estimates the target's embedding x_0 from guidance, x_t and t: pre-LN layers, every token attends to all others.

    There are no position embeddings. The model knows the order only from the last token, which it reads, and from the
    centres.
    """

    def __init__(self, options: DiQDiffOptions) -> None:
        super().__init__()
        hidden = options.hidden
        self.steps, self.lambda_noise = options.steps, options.lambda_noise
        self.time = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.SiLU(), nn.Linear(4 * hidden, hidden))
        self.layers = nn.ModuleList(
            EncoderLayer(
                hidden, options.inner, options.heads, options.dropout, options.dropout, causal=False, norm_first=True,
                inner_dropout=options.dropout,
            )
            for _ in range(options.layers)
        )  # fmt: skip
        self.dropout = Dropout(options.dropout)
        self.norm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)

    def forward(self, guidance_ND: Tensor, x_BD: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """(N, D) guidance of the kept tokens, (B, D) x_t and (B,) steps in 1..T -> (B, D) estimate of x_0."""
        scaled_B = (t_B - 1) * (1000 / self.steps)  # the released code counts steps from 0
        state_BD = x_BD + self.time(timestep_embedding(scaled_B, x_BD.shape[1]).to(x_BD.dtype))
        token_ND = guidance_ND + self.lambda_noise * F.embedding(layout.row(), state_BD)
        for layer in self.layers:
            token_ND = self.dropout(layer(token_ND, layout, last_only=layer is self.layers[-1]))
        return self.norm(self.dropout(token_ND))  # type: ignore[no-any-return]


class DiQDiff(SequenceModel):
    """Estimates the next item's embedding, and ranks items by its dot products with the item table.

    Inference "direct" is one call on the starting noise, at step T; "chain" is the reverse chain of T calls.
    """

    inference_choices = ("direct", "chain")
    inference = "direct"

    def __init__(self, options: DiQDiffOptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.noise = KeyedNoise(context.seed)
        self.diffusion = Diffusion("trunc_lin", options.steps)
        # N(0, 1), PyTorch's default, as released: the same scale as the noise that is added to it
        self.item_embedding = nn.Embedding(context.table.n_items, options.hidden, padding_idx=0)
        self.norm = nn.LayerNorm(options.hidden, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(options.embedding_dropout)
        self.approximator = Approximator(options)
        self.loss_weights = {"ranking": 1.0}
        if options.lambda_contrast:
            self.loss_weights["contrast"] = options.lambda_contrast
        if options.lambda_intent:
            self.quantiser = SequenceQuantiser(
                context.max_length, options.hidden, options.codes, options.code_temperature
            )
            self.loss_weights["codebook"] = options.lambda_codebook

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        layout = Layout.of(batch)
        guidance_ND, losses = self._guidance(batch, layout)
        t_B = self.noise.integers(batch.key, 1, self.options.steps, Stream.TARGET_STEP)
        noise_BD = self.noise.normal(batch.key, (self.options.hidden,), Stream.TARGET_NOISE)
        x_BD = self.diffusion.corrupt(self.item_embedding(batch.target), t_B, noise_BD)
        estimate_BD = self.approximator(guidance_ND, x_BD, t_B, layout)
        losses["ranking"] = full_softmax_cross_entropy(estimate_BD, self.item_embedding.weight, batch.target)
        if self.options.lambda_contrast:
            losses["contrast"] = uniformity(estimate_BD, batch.key, self.options.contrast_temperature)
        return losses

    def _guidance(self, batch: Batch, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, D) weighted sum of history and centre for the kept tokens, and the loss of the centres by name."""
        history_ND = self.norm(self.dropout(self.item_embedding(layout.flatten(batch.history))))
        guidance_ND = self.options.lambda_history * history_ND
        if not self.options.lambda_intent:
            return guidance_ND, {}
        real_BL = batch.history != 0
        # zero at padding, where the LayerNorm gives another value
        history_BLD = layout.pad(history_ND) * real_BL[:, :, None]
        gumbel_BM = self.noise.gumbel(batch.key, (self.options.codes,), Stream.CLUSTER) if self.training else None
        centre_BLD = oldest_first(self.quantiser(newest_last(history_BLD, batch.length), gumbel_BM), batch.length)
        losses = {"codebook": codebook_loss(centre_BLD, history_BLD, real_BL)}
        return guidance_ND + self.options.lambda_intent * layout.flatten(centre_BLD), losses

    def user_vectors(self, batch: Batch) -> Tensor:
        layout = Layout.of(batch)
        guidance_ND, _ = self._guidance(batch, layout)
        start_BD = self.noise.normal(batch.key, (self.options.hidden,), Stream.START_NOISE).to(guidance_ND.dtype)

        def predict(x_BD: Tensor, t: int) -> Tensor:
            estimate: Tensor = self.approximator(guidance_ND, x_BD, torch.full_like(batch.length, t), layout)
            return estimate

        steps = self.options.steps
        if self.inference == "direct":
            return predict(start_BD, steps).float()
        return self.diffusion.reverse(start_BD, steps, predict).float()

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight.float()
