"""Whole top-k lists from an index, which itself can neither leave items out nor promise to find k of them.

Shapes: B users, I items (row 0 is padding), D width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retrieval.exact import Histories, exact_topk
from retrieval.index.faiss_index import Index

#: items found at a time; each takes some tens of bytes
_FOUND = 1 << 22


def by_depth(needed_B: Tensor, limit: int) -> Iterator[tuple[Tensor, int]]:
    """(rows, depth) of searches by which each row gets as many items as it needs, at most `limit`.

    Depths are powers of two, so there are few searches, and what a row gets does not depend on the rows beside it.
    Where rows are deep, a search is of fewer of them, so that memory is bounded.
    """
    depths = [min(limit, 1 << (need - 1).bit_length()) for need in needed_B.tolist()]
    for depth in sorted(set(depths)):
        rows = (torch.tensor(depths) == depth).nonzero()[:, 0]
        for part in rows.split(max(1, _FOUND // depth)):
            yield part, depth


def seen_before(ids_BK: Tensor, histories: Histories, n_items: int) -> Tensor:
    """(B, K) bool: whether the item is in its row's history. ids_BK: item rows, 0 where an index found none."""
    user, item = histories.pairs(0, len(ids_BK), n_items)
    # encode pairs as numbers: for large catalogues a table of users by items would not fit into memory
    row = torch.arange(len(ids_BK))[:, None] * n_items
    return torch.isin(row + ids_BK, user * n_items + item)


def index_topk(index: Index, users_BD: Tensor, items_ID: Tensor, k: int, exclude: Histories) -> tuple[Tensor, Tensor]:
    """`exact.exact_topk` by an index of `items_ID`: scores (B, k), and item rows (B, k) without those of `exclude`.

    Each user's search is as deep as k and the items to leave out need. Users for whom the index still finds too few
    (an IVF list is short, a part of an HNSW graph cannot be reached, FAISS on a GPU has a limit) are ranked exactly,
    so a row only ends with score -inf and item 0 where no item is left. Raises UserError if a vector is not finite.
    """
    n_items = len(items_ID)
    out_B = torch.bincount(exclude.pairs(0, len(users_BD), n_items)[0], minlength=len(users_BD))
    scores_BK = torch.full((len(users_BD), k), -torch.inf)
    ids_BK = torch.zeros((len(users_BD), k), dtype=torch.int64)
    queries = users_BD.float().cpu().numpy()
    for rows, depth in by_depth(k + out_B, index.limit):
        found, ids = (torch.from_numpy(x) for x in index.search(queries[rows.numpy()], depth))
        found[seen_before(ids, exclude.of_rows(rows), n_items)] = -torch.inf
        found, order = found.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order).masked_fill(found == -torch.inf, 0)
        scores_BK[rows, :depth], ids_BK[rows, :depth] = found[:, :k], ids[:, :k]
    short = ((ids_BK > 0).sum(1) < (n_items - 1 - out_B).clamp(max=k)).nonzero()[:, 0]
    if len(short):
        scores, ids = exact_topk(users_BD[short.to(users_BD.device)], items_ID, k, exclude.of_rows(short))
        scores_BK[short], ids_BK[short] = scores.cpu(), ids.cpu()
    return scores_BK, ids_BK
