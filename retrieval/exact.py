"""Exact ranking of the whole catalogue: it gives the ranks for all metrics, and every index is compared with it.

Shapes: B users, I items (row 0 is padding), D width of a vector. All arithmetic is float32, on the device of the users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.errors import UserError
from models.options.base import Similarity

# Bytes of scores in memory at a time. On a CPU, ranking is several times faster if the scores fit into its cache.
_CPU_BYTES = 4 << 20
# Of top-k, whose longer rows of scores need fewer partial lists.
_TOPK_CPU_BYTES = 16 << 20
_ACCELERATOR_BYTES = 512 << 20
_SCORE_BYTES = 4
# Neighbouring items of which only the best score is looked at first.
_BLOCK = 64


@dataclass(frozen=True)
class Histories:
    """Known items of each user as compressed rows: user b has `items[offsets[b]:offsets[b + 1]]`.

    offsets: (B + 1,) int64; items: (N,) int64 item rows, in any order, duplicates and padding (0) allowed.
    """

    offsets: Tensor
    items: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Histories:
        """Compressed rows from one list of item rows per user."""
        lengths = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64)
        return cls(lengths.cumsum(0), torch.tensor([item for row in rows for item in row], dtype=torch.int64))

    def of_rows(self, rows: Tensor) -> Histories:
        """The histories of the users in `rows`, (N,) int64, in that order."""
        ends = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        return Histories.of([self.items[start:stop].tolist() for start, stop in ends])

    def pairs(self, start: int, stop: int, n_items: int) -> tuple[Tensor, Tensor]:
        """(user - start, item row) of the distinct real items of users start..stop."""
        offsets = self.offsets[start : stop + 1]
        items = self.items[int(offsets[0]) : int(offsets[-1])].long()
        user = torch.repeat_interleave(torch.arange(stop - start, device=items.device), offsets.diff().to(items.device))
        code = torch.unique(user * n_items + items)
        user, items = code // n_items, code % n_items
        real = items > 0
        return user[real], items[real]


class Ranks(NamedTuple):
    """Ranks of the targets, (B,) int64, 1-based: among all items, and with the user's own history masked."""

    all_items: Tensor
    history_masked: Tensor


def for_similarity(vectors: Tensor, similarity: Similarity) -> Tensor:
    """(N, D) float32 vectors whose inner product is `similarity`: unchanged for "dot", of length 1 for "cosine"."""
    vectors = vectors.float()
    return torch.nn.functional.normalize(vectors, dim=1) if similarity == "cosine" else vectors


def check_finite(vectors: Tensor, what: str) -> None:
    """Raise UserError naming the first row of `what` ("user vector", "item vector") that is not finite."""
    # a finite sum has finite terms alone, and takes a tenth of the time, which each answer of a service needs; a sum of
    # finite terms may overflow, so another one proves nothing yet
    if bool(torch.isfinite(vectors.sum())):
        return
    finite = torch.isfinite(vectors).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise UserError(
            f"{what} {row} holds NaN or an infinite value ({int((~finite).sum()):,} of {len(vectors):,} {what}s do): "
            "nothing can be ranked; the model has diverged: train it again with a lower learning rate"
        )


@torch.no_grad()
def exact_ranks(
    users_BD: Tensor, items_ID: Tensor, targets_B: Tensor, histories: Histories, *, max_bytes: int | None = None
) -> Ranks:
    """Rank of each user's target, ties counted against the target.

    users_BD: (B, D), items_ID: (I, D) float32 with row 0 padding, targets_B: (B,) int64 item rows in 1..I-1;
    histories: the full known history of each user. The target itself is never masked. max_bytes: memory for scores.
    Rank = 1 + number of other items whose score is not lower. Raises UserError if a vector is not finite, ValueError
    if a target is out of range.
    """
    check_finite(users_BD, "user vector")
    check_finite(items_ID, "item vector")
    n_items, device = len(items_ID), users_BD.device
    targets_B = _checked(targets_B.to(device), n_items)
    real_items = items_ID[1:].float()  # row 0 is left out of the matmul, so column c is item c + 1
    budget = max_bytes or _default_bytes(device)
    step = max(1, budget // (_SCORE_BYTES * max(1, n_items)))
    parts = [Ranks(targets_B[:0], targets_B[:0])]
    with _full_float32():
        for start in range(0, len(users_BD), step):
            stop = min(start + step, len(users_BD))
            scores = users_BD[start:stop].float() @ real_items.T
            parts.append(_rank(scores, targets_B[start:stop], histories.pairs(start, stop, n_items)))
    return Ranks(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def score_ranks(scores_BI: Tensor, targets_B: Tensor, histories: Histories) -> Ranks:
    """`exact_ranks` from given scores: (B, I) float32; column 0 is padding and is never ranked.

    Raises UserError if a score is not finite, ValueError if a target is out of range.
    """
    check_finite(scores_BI[:, 1:], "score row")
    n_items = scores_BI.shape[1]
    targets_B = _checked(targets_B.to(scores_BI.device), n_items)
    return _rank(scores_BI[:, 1:].clone(), targets_B, histories.pairs(0, len(scores_BI), n_items))


def _checked(targets_B: Tensor, n_items: int) -> Tensor:
    if len(targets_B) and (int(targets_B.min()) < 1 or int(targets_B.max()) >= n_items):
        raise ValueError(f"targets must be item rows in 1..{n_items - 1}")
    return targets_B


def _rank(scores: Tensor, target_B: Tensor, seen: tuple[Tensor, Tensor]) -> Ranks:
    """Ranks from the scores (B, I - 1) of items 1.., which it overwrites. seen: (user, item) pairs of histories."""
    # taken from the same matmul as the other scores: a separate product could differ in the last bit
    own = scores.gather(1, target_B[:, None] - 1)
    user, item = (x.to(scores.device) for x in seen)
    # "not lower" rather than ">=": a score that overflowed to NaN counts against the target too
    rival = ~(scores[user, item - 1] < own[user, 0]) & (item != target_B[user])
    masked = torch.zeros_like(target_B).index_add_(0, user, rival.long())
    # in place, so there is no second array of scores; the sum in float64 is exact for any catalogue size
    lower = scores.lt_(own).sum(1, dtype=torch.float64).long()
    rank = scores.shape[1] - lower
    return Ranks(rank, rank - masked)


@torch.no_grad()
def exact_topk(
    users_BD: Tensor, items_ID: Tensor, k: int, exclude: Histories | None = None, *, max_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each user: scores (B, k) float32, best first, and item rows (B, k) int64.

    Of equal scores, the lower item row comes first. Items of `exclude` are never returned. If fewer than k items are
    left, the row ends with score -inf and item 0. Works in chunks of users and items, so that the scores in memory
    stay below max_bytes. Raises UserError if a vector is not finite.
    """
    check_finite(users_BD, "user vector")
    check_finite(items_ID, "item vector")
    n_items, device = len(items_ID), users_BD.device
    cells = max(1, (max_bytes or _default_bytes(device, _TOPK_CPU_BYTES)) // _SCORE_BYTES)
    item_step = max(1, k, min(n_items, cells // min(64, max(1, len(users_BD)))))
    user_step = max(1, cells // item_step)
    scores_out = torch.full((len(users_BD), k), -torch.inf, device=device)
    ids_out = torch.zeros((len(users_BD), k), dtype=torch.int64, device=device)
    with _full_float32():
        for start in range(0, len(users_BD), user_step):
            stop = min(start + user_step, len(users_BD))
            user, item = (torch.empty(0, dtype=torch.int64),) * 2
            if exclude is not None:
                user, item = exclude.pairs(start, stop, n_items)
            user, item = user.to(device), item.to(device)
            best_scores, best_ids = scores_out[start:stop, :0], ids_out[start:stop, :0]
            for first in range(1, n_items, item_step):
                last = min(first + item_step, n_items)
                scores = users_BD[start:stop].float() @ items_ID[first:last].float().T
                inside = (item >= first) & (item < last)
                scores[user[inside], item[inside] - first] = -torch.inf
                chunk_scores, chunk_ids = _best_columns(scores, k)
                chunk_ids = chunk_ids + first
                # chunks are in ascending order of item rows, so of equal scores the earlier one has the lower row
                best_scores, best_ids = _ordered_topk(
                    torch.cat([best_scores, chunk_scores], 1), torch.cat([best_ids, chunk_ids], 1), k
                )
            scores_out[start:stop, : best_scores.shape[1]] = best_scores
            ids_out[start:stop, : best_ids.shape[1]] = best_ids
    ids_out[scores_out == -torch.inf] = 0
    return scores_out, ids_out


@torch.no_grad()
def score_topk(scores_BI: Tensor, k: int, exclude: Histories | None = None) -> tuple[Tensor, Tensor]:
    """`exact_topk` from given scores: (B, I) float32; column 0 is padding and is never returned.

    Raises UserError if a score is not finite.
    """
    check_finite(scores_BI[:, 1:], "score row")
    rows, n_items = scores_BI.shape
    scores = scores_BI.clone()
    scores[:, 0] = -torch.inf
    if exclude is not None:
        user, item = exclude.pairs(0, rows, n_items)
        scores[user.to(scores.device), item.to(scores.device)] = -torch.inf
    best, ids = _best_columns(scores, k)
    missing = (0, k - best.shape[1])
    best, ids = torch.nn.functional.pad(best, missing, value=-torch.inf), torch.nn.functional.pad(ids, missing)
    ids[best == -torch.inf] = 0
    return best, ids


def _best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row of (B, C) scores and their columns; of equal scores, the lower column comes first.

    torch.topk costs about ten times as much as the maximum of as many numbers on a CPU. So it sees, of a long row, only
    the blocks of columns with the k best maxima: an item of another block has k items before it, one in each of these.
    """
    rows, width = scores.shape
    blocks = width // _BLOCK
    columns = torch.arange(width, device=scores.device)
    if scores.device.type != "cpu" or blocks < 4 * k:
        return _ordered_topk(scores, columns.expand_as(scores), k)
    cut = blocks * _BLOCK
    maxima = scores[:, :cut].view(rows, blocks, _BLOCK).amax(2)
    _, best = _ordered_topk(maxima, columns[:blocks].expand(rows, blocks), k)
    inside = (best.sort(dim=1)[0] * _BLOCK)[:, :, None] + columns[:_BLOCK]
    kept = torch.cat([inside.flatten(1), columns[cut:].expand(rows, -1)], 1)  # ascending, and the rest of the row
    return _ordered_topk(scores.gather(1, kept), kept, k)


def _ordered_topk(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top-k in which equal scores stay in the order of their positions; torch.topk returns them in any order."""
    k = min(k, scores.shape[1])
    top, column = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if top.shape[1] > k:  # a tie across the k-th place: these few rows need a full, stable sort
        tied = (top[:, k - 1] == top[:, k]).nonzero()[:, 0]
        if len(tied):
            column[tied] = scores[tied].sort(dim=1, descending=True, stable=True)[1][:, : k + 1]
    column = column[:, :k].sort(dim=1)[0]
    top, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return top, ids.gather(1, column.gather(1, order))


def _default_bytes(device: torch.device, on_cpu: int = _CPU_BYTES) -> int:
    return on_cpu if device.type == "cpu" else _ACCELERATOR_BYTES


@contextmanager
def _full_float32() -> Iterator[None]:
    """Run matmuls in full float32: training may have enabled TF32, whose 10-bit mantissa makes close scores equal."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
