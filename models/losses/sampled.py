"""Softmax over a sample of the catalogue: the targets of the global batch, and N items that a step draws for all rows.

An item i occurs among them E_i times on average: (M - 1) p_i + N q_i, where M is the number of rows of the batch, p the
share of each item among the targets of the training rows, and q what the N items are drawn by. Each occurrence counts
1 / E_i (log E_i is subtracted from its logit: the logQ correction), except that a row's own target counts once, by its
own logit, and is never its own negative. So the sum of exponentials that a row is divided by is an unbiased estimate
of the full softmax's, and the loss tends to the full softmax's as N grows. Sources: Bengio and Senecal 2008 (sampled
softmax), Yi et al. 2019 (targets of the batch with logQ), Yang et al. 2020 (both kinds together), Veach and Guibas
1995 (1 / E_i for samples from several distributions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.contract import Batch, TrainingInteractions
from models.nn.gather import Gather, repeated
from models.nn.noise import KeyedNoise, Stream
from models.options.ranking import Sampling


@dataclass(frozen=True)
class SampledItems:
    """The C candidates of a step, in fixed number: M targets in the order of workers and rows, then N drawn items.

    key: (0-dim) of the step. item_C: (C,) item rows, equal ones possible. offset_C: (C,) float32, minus log E of each;
    -inf for a row that occurs twice in the batch. target_B: (B,) item rows. own_B: (B,) index in item_C of the target
    of each row of this worker.
    """

    key: Tensor
    item_C: Tensor
    offset_C: Tensor
    target_B: Tensor
    own_B: Tensor

    def apply(self, logits: Tensor, rows: slice, target_B: Tensor) -> Tensor:
        """`Corrections` of models.losses.softmax: in every row each occurrence of its target but its own is hidden."""
        own = logits.gather(1, target_B[rows, None])
        logits.add_(self.offset_C.to(logits.dtype))
        logits.masked_fill_(self.item_C == self.target_B[rows, None], -torch.inf)
        return logits.scatter_(1, target_B[rows, None], own)


class Sampler(nn.Module):
    """Draws the candidates of a step. The smallest key of the global batch, which no other step has, decides the draw,
    so it is the same for any number of workers, and in a run that goes on after a crash.

    allowed_I: (I,) bool, the items that can be drawn.
    """

    targets: Tensor
    upto: Tensor

    def __init__(
        self, interactions: TrainingInteractions, allowed_I: Tensor, number: int, sampling: Sampling, seed: int
    ) -> None:
        super().__init__()
        self.number, self.noise = number, KeyedNoise(seed)
        # every item of a user is the target of a training row, except the first
        begin, end = interactions.offsets[:-1], interactions.offsets[1:]
        first_U = interactions.items[begin[begin < end]]
        targets_I = torch.bincount(interactions.items, minlength=len(allowed_I))
        targets_I -= torch.bincount(first_U, minlength=len(allowed_I))
        weight_I = targets_I + 1 if sampling == "popularity" else torch.ones_like(targets_I)
        self.rows = int(targets_I.sum())
        self.register_buffer("targets", targets_I, persistent=False)
        # an item is drawn by a number below the sum of the weights: the first item up to which the sum is larger
        upto_I = (weight_I * allowed_I).cumsum(0)
        self.total = int(upto_I[-1])
        self.register_buffer("upto", upto_I, persistent=False)

    def forward(self, batch: Batch) -> SampledItems:
        """The candidates for the rows of `batch` on this worker. Collective with several workers."""
        gather = Gather.of(len(batch), batch.key.device)
        key_M, target_M = gather(batch.key), gather(batch.target)
        key, again_M = key_M.amin(), repeated(key_M)
        drawn_N = self.noise.below(self.total, key, self.number, Stream.CANDIDATES)
        item_C = torch.cat([target_M, torch.searchsorted(self.upto, drawn_N, right=True)])
        others = (~again_M).sum() - 1
        weight_C = self.upto[item_C] - self.upto[item_C - 1]
        expected_C = others * self.targets[item_C] / max(1, self.rows - 1) + weight_C * (self.number / self.total)
        offset_C = -expected_C.float().log()
        offset_C[: len(again_M)].masked_fill_(again_M, -torch.inf)
        own_B = gather.start + torch.arange(len(batch), device=item_C.device)
        return SampledItems(key, item_C, offset_C, batch.target, own_B)
