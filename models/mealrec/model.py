"""MealRec: hierarchical diffusion for micro-video recommendation (paper, section 4), over any backbone.

TCD refines the content of the last video, given the user's taste. NPD recovers the preference from its corrupted state,
given that content. Loss: L_R + lambda_T L_T + lambda_N L_N (Eq. 16). Decisions D1-D36 are in docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.cl4srec import CL4SRec
from models.contract import Batch, ModelContext, SequenceModel
from models.mealrec.explained import explained, idle
from models.mealrec.npd import PreferenceDenoiser
from models.mealrec.tcd import ContentDenoiser, TemporalAttention, recency_context
from models.nn.content import ContentInput
from models.nn.diffusion import Diffusion
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.precision import at_least_float32
from models.nn.transformer import init_weights, zero_weights
from models.options.mealrec import MealRecOptions, Sampling
from models.sasrec import SASRec
from models.tedrec import TedRec

#: squared lengths below are as if they were this
_LEAST = 1e-12


def _build_backbone(options: MealRecOptions, context: ModelContext) -> Backbone:
    if options.backbone == "sasrec":
        return SASRec(options.sasrec, context)
    if options.backbone == "cl4srec":
        return CL4SRec(options.cl4srec, context)
    return TedRec(options.tedrec, context)


class FusionMLP(nn.Module):
    """Replaces NPD in the -NPD ablation: x_0 + MLP([x_0; W_v mean(z); W_h h_L]) with two layers (D29)."""

    def __init__(self, hidden: int, visual: int, text: int) -> None:
        super().__init__()
        self.visual = nn.Linear(visual, hidden)
        self.text = nn.Linear(text, hidden)
        self.fuse = nn.Linear(3 * hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x_BD: Tensor, z_BKV: Tensor, text_BH: Tensor) -> Tensor:
        """(B, D) preference, (B, K, V) refined content, (B, H) text -> (B, D) what to add to x_0."""
        fused = self.fuse(torch.cat([x_BD, self.visual(z_BKV.mean(1)), self.text(text_BH)], dim=1))
        return self.out(F.gelu(fused))  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Add nothing at first."""
        zero_weights(self.out)


class MealRec(SequenceModel):
    """Backbone, TCD and NPD, trained together end to end."""

    def __init__(self, options: MealRecOptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.noise = KeyedNoise(context.seed)
        self.content_diffusion = Diffusion(options.schedule, options.tcd_steps or options.steps)
        self.preference_diffusion = Diffusion(options.schedule, options.npd_steps or options.steps)
        self.sequence = ContentInput(context.table, "sequence", options.tcd.scale)
        self.visual = ContentInput(context.table, "visual", options.tcd.scale)
        self.text = ContentInput(context.table, "text", options.npd.scale)
        steps, width = self.sequence.width
        self._build_denoisers(steps, width)
        self.backbone = _build_backbone(options, context)
        self.share = context.share
        hidden, text = self.backbone.hidden, self.text.width[0]
        self.preference = (
            PreferenceDenoiser(hidden, steps, width, text, options.npd)
            if options.use_npd else FusionMLP(hidden, width, text)
        )  # fmt: skip
        self.preference.apply(init_weights)
        self.preference.begin()
        self.similarity = self.backbone.similarity
        self.loss_weights = {**self.backbone.loss_weights, "tcd": options.lambda_tcd, "npd": options.lambda_npd}
        self.inference_choices = self._choices()
        self.inference = self.inference_choices[0]

    def _build_denoisers(self, steps: int, width: int) -> None:
        if not self.options.use_tcd:
            return
        self.temporal = TemporalAttention(steps, width, self.options.tcd).apply(init_weights)
        self.refine = ContentDenoiser(width, self.visual.width[0], self.content_diffusion, self.options.tcd)

    def _choices(self) -> tuple[str, ...]:
        """All allowed uses of the denoisers at evaluation; the cheapest is first."""

        def ways(used: bool, sampling: Sampling) -> tuple[str, ...]:
            if not used:
                return ("none",)
            return ("direct", "chain") if sampling == "auto" else (sampling,)

        tcd = ways(self.options.use_tcd, self.options.tcd_sampling)
        npd = ways(self.options.use_npd, self.options.npd_sampling)
        return tuple(f"tcd={t} npd={n}" for t in tcd for n in npd)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.backbone.training_rows(batch)
        last_B = _last_item(batch)
        terms: dict[str, Tensor] = {}
        z_BKV = self.sequence(last_B)
        if self.options.use_tcd:
            z_BKV = self._refine_training(z_BKV, batch, terms)
        x_BD, length_B1 = self._preference(batch)
        state = x_BD
        if self.options.use_npd:
            t_B = self.noise.integers(batch.key, 1, self.preference_diffusion.steps, Stream.NPD_STEP)
            noise = self.noise.normal(batch.key, (x_BD.shape[1],), Stream.NPD_NOISE)
            state = self.preference_diffusion.corrupt(x_BD, t_B, noise)
        added_BD = self.preference(state, z_BKV, self.text(last_B))
        estimate_BD = _direction(state + added_BD)
        if self.options.use_npd:
            # x_t is cut off where g only passes it on: there it would send the noise itself into the backbone, as a
            # gradient (D17). Through what g reads of it, L_N does teach the backbone.
            detach = self.options.detach_preference
            target, kept = (x_BD.detach(), state.detach()) if detach else (x_BD, state)
            terms["npd"] = squared_distance(_direction(kept + added_BD), target)
            terms |= explained("npd", x_BD, state, estimate_BD)
        user_BD = length_B1 * self._mix(estimate_BD, x_BD)
        return {"ranking": self.backbone.ranking_loss(user_BD, batch), **terms,
                **self.backbone.auxiliary_losses(batch)}  # fmt: skip

    def _preference(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) direction of x_0 (Eq. 12), and (B, 1) root mean square of x_0.

        The diffusion is over directions, so that noise of unit variance fits what it is added to, whatever the length
        of a backbone's vectors (D20). The length is the backbone's, and is put back before the ranking.
        """
        x_BD = at_least_float32(self.backbone.encode(batch))
        length_B1 = _length(x_BD)
        return x_BD / length_B1, length_B1

    def _denoised(self, x_BD: Tensor, z_BKV: Tensor, text_BH: Tensor) -> Tensor:
        """(B, D) estimate of the direction of x_0 from its noisy state x_BD (Eq. 14)."""
        return _direction(x_BD + self.preference(x_BD, z_BKV, text_BH))

    def _refine_training(self, sequence_BKV: Tensor, batch: Batch, terms: dict[str, Tensor]) -> Tensor:
        """The estimate of z_0 at one random step per row (D14, D15); adds L_T (Eq. 11) to the terms."""
        z_BKV = self.temporal(sequence_BKV)
        t_B = self.noise.integers(batch.key, 1, self.content_diffusion.steps, Stream.TCD_STEP)
        noise = self.noise.normal(batch.key, tuple(z_BKV.shape[1:]), Stream.TCD_NOISE)
        state = self.content_diffusion.corrupt(z_BKV, t_B, noise)
        estimate: Tensor = self.refine(state, t_B, self._context(batch))
        target = z_BKV.detach() if self.options.detach_content else z_BKV
        terms["tcd"] = squared_distance(estimate, target)
        terms |= explained("tcd", z_BKV, state, estimate)
        return estimate

    def _context(self, batch: Batch) -> Tensor:
        layout = Layout.of(batch)
        visual_NV = self.visual(layout.flatten(batch.history))
        return recency_context(visual_NV, layout, batch.length, self.options.tcd.decay)

    def _mix(self, estimate_BD: Tensor, x_BD: Tensor) -> Tensor:
        mix = self.options.mix
        return (1 - mix) * estimate_BD + mix * x_BD if mix else estimate_BD

    def user_vectors(self, batch: Batch) -> Tensor:
        return self.user_vectors_with(batch, self.last_sequence(batch))

    def last_sequence(self, batch: Batch) -> Tensor:
        """(B, K, V) content sequence F_L of each history's last video, scaled."""
        return self.sequence(_last_item(batch))  # type: ignore[no-any-return]

    def refined(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K, V) z_0 of the last video, and what TCD makes of it for the user vector; raw F_L twice without TCD."""
        sequence_BKV = self.last_sequence(batch)
        start_BKV = self.temporal(sequence_BKV) if self.options.use_tcd else sequence_BKV
        return start_BKV, self._refine(sequence_BKV, batch, self._ways()[0])

    def frame_changes(self, batch: Batch) -> Tensor | None:
        """(B, K) squared distance of each refined frame from z_0, as a share of the squared length of z_0."""
        if not self.options.use_tcd:
            return None
        before, after = (each.float() for each in self.refined(batch))
        return (after - before).square().sum(-1) / before.square().sum(-1).clamp(min=_LEAST)

    def user_vectors_with(self, batch: Batch, sequence_BKV: Tensor) -> Tensor:
        """`user_vectors`, if the last video had this content sequence (as of `last_sequence`)."""
        last_B = _last_item(batch)
        tcd, npd = self._ways()
        z_BKV = self._refine(sequence_BKV, batch, tcd)
        x_BD, length_B1 = self._preference(batch)
        text_BH = self.text(last_B)
        start = self.options.npd_start or self.preference_diffusion.steps
        if npd == "chain":
            noise = self.noise.normal(batch.key, (x_BD.shape[1],), Stream.NPD_CHAIN)
            state = self.preference_diffusion.corrupt(x_BD, torch.full_like(last_B, start), noise)
            estimate = self.preference_diffusion.reverse(state, start, lambda x, _: self._denoised(x, z_BKV, text_BH))
        else:
            estimate = self._denoised(x_BD, z_BKV, text_BH)
        return (length_B1 * self._mix(estimate, x_BD)).float()

    def _ways(self) -> tuple[str, str]:
        """How the denoisers are used at evaluation: of TCD, of NPD."""
        tcd, npd = (part.split("=")[1] for part in self.inference.split(" "))
        return tcd, npd

    def _refine(self, sequence_BKV: Tensor, batch: Batch, tcd: str) -> Tensor:
        """The refined content at evaluation: the reverse chain from q(z_start | z_0) (Eq. 10, D12), one call on the
        clean state, or no change."""
        if tcd == "none":
            return sequence_BKV
        z_BKV, context_BV = self.temporal(sequence_BKV), self._context(batch)
        if tcd == "direct":
            return self.refine(z_BKV, torch.ones_like(batch.length), context_BV)  # type: ignore[no-any-return]
        start = self.options.tcd_start or self.content_diffusion.steps
        noise = self.noise.normal(batch.key, tuple(z_BKV.shape[1:]), Stream.TCD_CHAIN)
        state = self.content_diffusion.corrupt(z_BKV, torch.full_like(batch.length, start), noise)
        return self.content_diffusion.reverse(
            state, start, lambda z, t: self.refine(z, torch.full_like(batch.length, t), context_BV)
        )

    def sparse_tables(self) -> list[Tensor]:
        return self.backbone.sparse_tables()

    def doubts(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        return idle(figures)

    def item_vectors(self) -> Tensor:
        return self.backbone.item_vectors()


def squared_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Scalar: ||target - estimate||^2 of the vectors (..., D), mean over all of them (Eqs. 11 and 14, D21)."""
    return (at_least_float32(estimate) - at_least_float32(target)).square().sum(-1).mean()


def _length(x_BD: Tensor) -> Tensor:
    """(B, 1) root mean square of each row."""
    return x_BD.square().mean(1, keepdim=True).clamp(min=_LEAST).sqrt()


def _direction(x_BD: Tensor) -> Tensor:
    """(B, D) with unit mean square."""
    x_BD = at_least_float32(x_BD)
    return x_BD / _length(x_BD)


def _last_item(batch: Batch) -> Tensor:
    """(B,) the most recent item i_L of each history."""
    return batch.history.gather(1, batch.length[:, None] - 1).squeeze(1)
