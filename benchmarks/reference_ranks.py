"""Our ranks and metrics on another program's score matrix: full ranking, ties against the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from reference_rows import TARGET_FROM_END, Sequences

CUTOFFS = (10, 20)


def strict_ranks(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B,) 1-based ranks of the targets in (B, I) scores: every item that scores as high or higher goes before."""
    assert not torch.isnan(scores).any(), "the scores hold NaN"
    target_scores = scores.gather(1, targets[:, None])
    return (scores >= target_scores).sum(1)  # the target itself counts as its own place


@dataclass
class RankRecorder:
    """Collects per-user ranks from the very score matrices that the other program ranks."""

    sequences: Sequences
    split: str
    to_id: np.ndarray  # our item row -> the other program's id
    unmasked: list[int] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)

    def add(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Rank one batch; evaluation rows come in user order, which `check_rows` has proved."""
        self.unmasked += strict_ranks(scores, targets).tolist()
        hidden = scores.clone()
        back = TARGET_FROM_END[self.split]
        for row, user in enumerate(range(len(self.masked), len(self.masked) + len(targets))):
            start, end = self.sequences.offsets[user : user + 2]
            hidden[row, self.to_id[self.sequences.items[start : end - back]]] = -torch.inf
        # a target that the user has met before stays a candidate
        hidden.scatter_(1, targets[:, None], scores.gather(1, targets[:, None]))
        self.masked += strict_ranks(hidden, targets).tolist()


def metrics(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Means over users; one positive each, so NDCG@k = 1 / log2(rank + 1) within k and 0 beyond."""
    found: dict[str, float] = {"users": len(ranks)}
    for k in cutoffs if len(ranks) else ():
        found[f"HR@{k}"] = float((ranks <= k).mean())
        found[f"NDCG@{k}"] = float(np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0).mean())
    return found
