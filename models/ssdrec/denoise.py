"""SSDRec's hierarchical denoising: an item is noise only if both the sequence level and the item level say so."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.dropout import Dropout
from models.nn.precision import at_least_float32
from models.ssdrec.augment import BiLSTM, straight_through


class HierarchicalDenoising(nn.Module):
    """Each level gives two scores per place, signal and noise, both in 0..1. The higher score wins; in training, Gumbel
    noise is added first.

    Sequence level: one Bi-LSTM encodes and decodes the row, then a convolution mixes all decoded and original places.
    Item level: an additive attention of each item with the user. LayerNorm replaces the released BatchNorm over places.
    """

    def __init__(self, length: int, hidden: int, dropout: float, readout_dropout: float) -> None:
        super().__init__()
        self.lstm = BiLSTM(hidden, hidden, bias=True)
        self.mix = nn.Conv1d(2 * length, length, 1)
        self.sequence_level = nn.Linear(hidden, 2, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.item = nn.Linear(hidden, hidden, bias=False)
        self.user = nn.Linear(hidden, hidden)
        self.item_level = nn.Linear(hidden, 2, bias=False)
        self.dropout, self.readout_dropout = Dropout(dropout), Dropout(readout_dropout)

    def forward(
        self, item_BLD: Tensor, vector_BLD: Tensor, user_BD: Tensor, length_B: Tensor,
        gumbel_B22L: Tensor | None, tau: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(B, L) 1 for a kept item and 0 for noise and padding; (B,) reconstruction error.

        item_BLD: vectors of the ID table. vector_BLD: vectors of the relation encoder. gumbel_B22L: Gumbel noise by
        level and score, or None for no noise. A row of noise alone keeps its last item. Gradients are
        straight-through, at temperature `tau`.
        """
        real_BL = torch.arange(item_BLD.shape[1], device=length_B.device) < length_B[:, None]
        decoded_BLD = self._decoded(item_BLD, real_BL, length_B)
        error_B = ((decoded_BLD - item_BLD) * real_BL[:, :, None]).square().sum(dim=(1, 2)) / length_B
        scores_B2L2 = torch.stack(
            [self._by_sequence(decoded_BLD, item_BLD, real_BL), self._by_item(vector_BLD, user_BD)], dim=1
        )
        odds_B2L = scores_B2L2[..., 1] - scores_B2L2[..., 0]
        if gumbel_B22L is not None:
            odds_B2L = odds_B2L + (gumbel_B22L[:, :, 1] - gumbel_B22L[:, :, 0]).to(odds_B2L.dtype)
        noise_B2L = straight_through((odds_B2L > 0).to(odds_B2L.dtype), (odds_B2L / tau).sigmoid())
        keep_BL = (1 - noise_B2L[:, 0] * noise_B2L[:, 1]) * real_BL
        last_BL = torch.arange(real_BL.shape[1], device=length_B.device) == length_B[:, None] - 1
        nothing_B = keep_BL.detach().sum(dim=1) == 0
        return keep_BL.masked_fill(nothing_B[:, None] & last_BL, 1.0), error_B

    def _decoded(self, item_BLD: Tensor, real_BL: Tensor, length_B: Tensor) -> Tensor:
        """(B, L, D) states of the second LSTM pass, with both directions added; zeros at padding."""
        states: Tensor = self.dropout(item_BLD)
        for _ in range(2):
            ahead, back = self.lstm(states, length_B)
            states = (ahead + back) * real_BL[:, :, None]
        return states

    def _by_sequence(self, decoded_BLD: Tensor, item_BLD: Tensor, real_BL: Tensor) -> Tensor:
        pairs = torch.cat([decoded_BLD, item_BLD * real_BL[:, :, None]], dim=1)
        scores: Tensor = self.sequence_level(F.relu(self.dropout(self.mix(pairs))))
        return at_least_float32(scores).sigmoid()

    def _by_item(self, vector_BLD: Tensor, user_BD: Tensor) -> Tensor:
        item = self.item(self.readout_dropout(self.norm(vector_BLD)))
        scores: Tensor = self.item_level(torch.tanh(item + self.user(user_BD)[:, None]))
        return at_least_float32(scores).sigmoid()


def filter_loss(
    item_BLD: Tensor, user_BD: Tensor, negative_BD: Tensor, length_B: Tensor, known_B: Tensor, dropped: float
) -> Tensor:
    """Scalar: mean over rows of the sum over items of -log sigmoid(user . item - user . negative), for known users.

    Leaves out the floor(dropped * length) items with the highest loss of each row.
    """
    margin_BL = ((item_BLD - negative_BD[:, None]) * user_BD[:, None]).sum(dim=2)
    counts_BL = torch.arange(margin_BL.shape[1], device=length_B.device) < length_B[:, None]
    loss_BL = F.softplus(-margin_BL).masked_fill(~counts_BL, 0.0)
    if dropped > 0:
        rank_BL = loss_BL.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        # 1e-6 corrects rounding errors, so that .2 * 5 is 1
        counts_BL = counts_BL & (rank_BL >= (dropped * length_B + 1e-6).floor()[:, None])
    return (loss_BL * (counts_BL & known_B[:, None])).sum(dim=1).mean()
