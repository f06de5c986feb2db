"""CL4SRec: contrastive learning for sequential recommendation (Xie et al. 2022), in RecBole-DA's form.

It is SASRec with a second loss, which brings the vectors of two augmented views of a history close to each other.
Differences from the released code are in docs/fidelity.md.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.augment import Augment
from models.contract import Batch, ModelContext
from models.losses.contrastive import info_nce
from models.nn.layout import Layout
from models.nn.noise import KeyedNoise
from models.options.cl4srec import CL4SRecOptions
from models.sasrec import SASRec


class CL4SRec(SASRec):
    """SASRec with InfoNCE between two augmented views of each history; with `lambda_contrast` 0 it is SASRec."""

    def __init__(self, options: CL4SRecOptions, context: ModelContext) -> None:
        super().__init__(options, context)
        self.options = options
        self.augment = Augment(options.crop, options.mask, options.reorder, KeyedNoise(context.seed))
        # not a row of the item table, because it must not be ranked
        self.mask_token = nn.Parameter(0.02 * torch.randn(options.hidden))
        if options.lambda_contrast:
            self.loss_weights = {**self.loss_weights, "contrast": options.lambda_contrast}

    def auxiliary_losses(self, batch: Batch) -> dict[str, Tensor]:
        if not self.options.lambda_contrast:
            return {}
        one, two = self.augment(batch)
        both = batch[torch.arange(len(batch), device=batch.length.device).repeat(2)]
        both = replace(both, history=torch.cat([one[0], two[0]]), length=torch.cat([one[1], two[1]]))
        both = replace(both, tokens=2 * batch.tokens)  # no view is longer than its history
        one_BD, two_BD = self._encode_view(both).chunk(2)
        options = self.options
        loss = info_nce(one_BD, two_BD, batch.key, options.contrast_similarity, options.contrast_temperature)
        return {"contrast": loss}

    def _encode_view(self, view: Batch) -> Tensor:
        """(B, D) vectors of the histories of `view`, in which item row -1 is [MASK]."""
        layout = Layout.of(view)
        row_N = layout.flatten(view.history)
        token_ND = self.item_embedding(row_N.clamp(min=0))
        return self.encoder(torch.where(row_N[:, None] < 0, self.mask_token, token_ND), layout)  # type: ignore[no-any-return]
