"""Vector quantisation of whole histories: it assigns each history to one of a few learned centres (as in DiQDiff).

The released code computes its centres again for every batch, as means of the members, so its metrics depend on the
evaluation batches. Here the centres are parameters, and `codebook_loss` keeps each near the mean of its members.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.options.base import require


class SequenceQuantiser(nn.Module):
    """Assigns a history of L vectors to one of M centres of the same shape, by a linear layer over the whole history.

    codes: number of centres M; the parameter `codes` (M, L, D) holds them. Raises UserError for codes below 1, or a
    temperature of 0 or less.
    """

    def __init__(self, length: int, hidden: int, codes: int, temperature: float = 0.1) -> None:
        super().__init__()
        require(codes >= 1, "codes", codes, "it must be at least 1")
        require(temperature > 0, "temperature", temperature, "it must be above 0")
        self.temperature = temperature
        self.assign = nn.Linear(length * hidden, codes)
        self.codes = nn.Parameter(torch.empty(codes, length, hidden).normal_(std=0.02))

    def forward(self, x_BLD: Tensor, gumbel_BM: Tensor | None) -> Tensor:
        """(B, L, D) centre of each history; `x_BLD` must be zero at padding.

        gumbel_BM: (B, M) Gumbel noise for a hard Gumbel-softmax sample, with the gradient of the soft sample
        (straight-through); None gives the likeliest centre. Runs in float32, so that rounding makes no ties.
        """
        with torch.autocast(x_BLD.device.type, enabled=False):
            flat_BX = x_BLD.flatten(1).to(self.codes.dtype)
            logits_BM = self.assign(flat_BX)
            if gumbel_BM is None:
                return self.codes[logits_BM.argmax(dim=1)]
            soft_BM = ((logits_BM + gumbel_BM) / self.temperature).softmax(dim=1)
            hard_BM = F.one_hot(soft_BM.argmax(dim=1), soft_BM.shape[1]).to(soft_BM.dtype)
            picked_BM = hard_BM + soft_BM - soft_BM.detach()
            return (picked_BM @ self.codes.flatten(1)).view(x_BLD.shape)  # type: ignore[no-any-return]


def newest_last(x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """(B, L, D) rows that begin with their oldest vector, moved to end with their newest one, as the releases pad.

    A quantiser reads a history by place, so the newest item, which says most, needs the same place in every row.
    """
    return _shifted(x_BLD, length_B)


def oldest_first(x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """The inverse of `newest_last`."""
    return _shifted(x_BLD, -length_B)


def _shifted(x_BLD: Tensor, by_B: Tensor) -> Tensor:
    place_BL = (torch.arange(x_BLD.shape[1], device=x_BLD.device) + by_B[:, None]) % x_BLD.shape[1]
    return x_BLD.gather(1, place_BL[:, :, None].expand_as(x_BLD))


def codebook_loss(centre_BLD: Tensor, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
    """Scalar: squared distance of each history to its centre, mean over its real positions, then over rows.

    `x_BLD` gets no gradient: the centres move to their members. The minimum is the mean of the members, as in the
    released code. The commitment term of VQ-VAE would move the members to their centres; there is none here.
    """
    square_BL = (centre_BLD.float() - x_BLD.detach().float()).square().mean(dim=2)
    return ((square_BL * real_BL).sum(dim=1) / real_BL.sum(dim=1)).mean()
