"""M3BSR: multi-modal multi-behaviour recommendation by conditional diffusions and a mixture of interest experts.

Its own code is not public; this follows the facts of the code of its journal successor (docs/fidelity.md). One
diffusion denoises content, conditioned on the IDs of the history. Another denoises the shallow behaviour (views),
conditioned on the deep one (likes and similar ones). One expert per behaviour and modality, and a common expert, encode
the user's interest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import Batch, ModelContext, SequenceModel
from models.errors import UserError
from models.losses.softmax import full_softmax_cross_entropy
from models.m3bsr.layers import Denoiser, InterestExperts, NoisePredictor, mean_cosine, unit
from models.m3bsr.parts import Part, compact
from models.nn.content import ContentInput
from models.nn.diffusion import Diffusion
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise, Stream
from models.nn.transformer import init_weights
from models.options.base import ContentField
from models.options.m3bsr import M3BSROptions

_CONTENT: dict[ContentField, tuple[Stream, Stream]] = {
    "visual": (Stream.VISUAL_STEP, Stream.VISUAL_NOISE),
    "text": (Stream.TEXT_STEP, Stream.TEXT_NOISE),
}


class M3BSR(SequenceModel):
    """Interest experts encode denoised content and behaviours to a unit user vector; dot product with the item table.

    Raises UserError if the dataset has several behaviours and none of them is deep.
    """

    def __init__(self, options: M3BSROptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.noise = KeyedNoise(context.seed)
        self._choose_behaviours(context.behaviours)
        hidden = options.hidden
        self.item_embedding = nn.Embedding(context.table.n_items, hidden, padding_idx=0)
        self.content = nn.ModuleList(ContentInput(context.table, field, options.scale) for field in _CONTENT)
        self.project = nn.ModuleList(nn.Linear(context.table.widths[field][0], hidden) for field in _CONTENT)
        self.experts = InterestExperts(
            1 + len(_CONTENT), context.max_length, hidden, options.inner, options.layers, options.heads, options.dropout
        )
        self.contrast = nn.Linear(hidden, hidden)
        self._build_denoisers()
        self.apply(init_weights)
        #: tokens, one per modality, for a behaviour that a row does not show; they have unit scale, as all tokens
        self.null = nn.Parameter(torch.randn(1 + len(_CONTENT), hidden)) if self._deep else None
        diffusions = (*(_CONTENT if options.denoise_content else ()), *["behaviour"] * options.denoise_behaviour)
        self.loss_weights = {
            "ranking": 1.0, "contrast": options.lambda_contrast, **dict.fromkeys(diffusions, options.lambda_diffusion)
        }  # fmt: skip
        ways = ("estimate", "chain", "none") if options.sampling == "auto" else (options.sampling,)
        self.inference_choices = ways if options.denoise_content or options.denoise_behaviour else ("none",)
        self.inference = self.inference_choices[0]

    def _choose_behaviours(self, names: tuple[str, ...]) -> None:
        """Set the bits of the deep and of the shallow behaviours; both are 0 if there is one behaviour only."""
        self._deep = self._shallow = 0
        if not names or not self.options.use_behaviours:
            why = "behaviours are ignored (use_behaviours)" if names else "this dataset has one behaviour"
            self.notes = (
                f"M3BSR (single-behaviour): {why}; the most recent half of a history is used as the deep behaviour",
            )
            return
        self._deep, self._shallow = (
            sum(1 << bit for bit, name in enumerate(names) if name in wanted)
            for wanted in (self.options.deep, self.options.shallow)
        )
        if not self._deep:
            raise UserError(
                f"M3BSR: none of this dataset's behaviours ({', '.join(names)}) is deep; name some of them in "
                f"model.deep (now {', '.join(self.options.deep)}), or set model.use_behaviours=false"
            )

    def _build_denoisers(self) -> None:
        o = self.options
        diffusion = Diffusion("linear", o.steps)

        def denoiser(streams: tuple[Stream, Stream]) -> Denoiser:
            return Denoiser(NoisePredictor(o.hidden, o.heads, o.steps, o.dropout), diffusion, self.noise, streams)

        self.content_denoisers = nn.ModuleList(map(denoiser, _CONTENT.values()) if o.denoise_content else ())
        streams = (Stream.BEHAVIOUR_STEP, Stream.BEHAVIOUR_NOISE)
        self.behaviour_denoiser = denoiser(streams) if o.denoise_behaviour else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        user_BD, specific_BED = self._interest(batch, losses)
        losses["contrast"] = mean_cosine(self.contrast(specific_BED)) / self.options.contrast_temperature
        losses["ranking"] = full_softmax_cross_entropy(user_BD, self.item_embedding.weight, batch.target)
        return losses

    def user_vectors(self, batch: Batch) -> Tensor:
        return self._interest(batch, None)[0].float()

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight.float()

    def _interest(self, batch: Batch, losses: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(B, D) unit user vectors and (B, E, D) expert outputs. losses: in training, receives the diffusion losses."""
        batch, shallow_BL, deep_BL = self._by_behaviour(batch)
        layout = Layout.of(batch)
        whole, shallow, deep = (Part.of(batch, keep, layout) for keep in (shallow_BL | deep_BL, shallow_BL, deep_BL))
        flat = layout.flatten(batch.history)
        tokens = [unit(self.item_embedding(flat))]
        for number, field in enumerate(_CONTENT):
            x = unit(self.project[number](self.content[number](flat)))
            if self.options.denoise_content:
                x = self._denoise(self.content_denoisers[number], field, (x, whole, tokens[0], whole), losses)
            tokens.append(x)
        # with one behaviour only, no part is empty, so no null tokens are needed
        nulls = [None] * len(tokens) if self.null is None else self.null
        in_shallow, in_deep = (
            [part.take(x, null) for x, null in zip(tokens, nulls, strict=True)] for part in (shallow, deep)
        )
        if self.behaviour_denoiser is not None:
            given = (in_shallow[0], shallow, in_deep[0], deep)
            in_shallow[0] = self._denoise(self.behaviour_denoiser, "behaviour", given, losses)
        user_BD, specific_BED = self.experts(in_shallow, shallow, in_deep, deep, layout)
        return F.normalize(user_BD, dim=1), specific_BED

    def _denoise(
        self, denoiser: nn.Module, name: str, given: tuple[Tensor, Part, Tensor, Part], losses: dict[str, Tensor] | None
    ) -> Tensor:
        assert isinstance(denoiser, Denoiser)
        if losses is not None:
            estimate, losses[name] = denoiser(*given)
            return estimate  # type: ignore[no-any-return]
        if self.inference == "none":
            return given[0]
        start, calls = self.options.evaluation_step, self.options.chain if self.inference == "chain" else 1
        return denoiser.reverse(*given, steps=[start - start * call // calls for call in range(calls)])

    def _by_behaviour(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """The batch without items that are neither shallow nor deep, and (B, L) masks of the shallow and deep items.

        A row without any behaviour (of a user who is known only by a list of items) is shallow as a whole.
        """
        position = torch.arange(batch.history.shape[1], device=batch.history.device)
        real = position < batch.length[:, None]
        if not self._deep:
            return batch, real, real & (position >= batch.length[:, None] // 2)
        deep = real & (batch.behaviours & self._deep != 0)
        shallow = real & (batch.behaviours & self._shallow != 0) if self._shallow else real & ~deep
        shallow = shallow | (real & ~(shallow | deep).any(dim=1, keepdim=True))
        kept, source_BL, _ = compact(batch, shallow | deep)
        real = position < kept.length[:, None]
        return kept, shallow.gather(1, source_BL) & real, deep.gather(1, source_BL) & real
