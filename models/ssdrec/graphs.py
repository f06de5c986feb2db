"""Relation graphs of SSDRec: which items and users belong together, or do not, from training interactions alone.

All graphs are sparse, built in blocks, and cut to the strongest neighbours of each row. So time and memory grow with
the number of interactions, and not with (U, U) or (I, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.contract import TrainingInteractions
from models.nn.precision import at_least_float32
from models.nn.sparse import interaction_users, row_normalised, sparse_matrix, user_item_counts

#: number of newest items of a sequence that the graphs use (the longest sequence of the released code)
LAST_ITEMS = 50
#: number of users of an item that become similar through it: those with the shortest histories, as the most similar
USERS_PER_ITEM = 100
#: number of neighbours of one item, or user, that can become incompatible, or dissimilar, through it
ITEMS_JOINED, USERS_JOINED = 300, 50
#: shares of the least frequent items and users, for which there are no incompatible items and dissimilar users
COLD_ITEMS, COLD_USERS = 0.8, 0.9
#: number of entries of a block before it is cut
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Relations:
    """Sparse matrices; each row sums to 1, or is empty.

    user_items (U, I), item_users (I, U): interaction counts. successors, predecessors (I, I): items that follow and
    precede an item. incompatible (I, I): items that never occur in one sequence, but both often with a third item.
    similar (U, U): users with shared items, and each user itself. dissimilar (U, U): users who share no item, but are
    both similar to a third user.
    """

    user_items: Tensor
    item_users: Tensor
    successors: Tensor
    predecessors: Tensor
    incompatible: Tensor
    similar: Tensor
    dissimilar: Tensor

    @staticmethod
    def of(interactions: TrainingInteractions, n_items: int, strong: int, neighbours: int) -> Relations:
        """Relations of `interactions`; item pairs count above `strong` occurrences, rows keep `neighbours` entries."""
        recent = _recent(interactions)
        counts = user_item_counts(recent, n_items)
        pairs, following = _transitions(recent, n_items, strong)
        similar = _similarity(counts, neighbours)
        of_items = counts.t().coalesce()
        return Relations(
            user_items=row_normalised(counts),
            item_users=row_normalised(of_items),
            successors=_strongest(following, neighbours),
            predecessors=_strongest(following.t().coalesce(), neighbours),
            incompatible=_strongest(_incompatible(pairs, strong, _hot(of_items, COLD_ITEMS), neighbours), neighbours),
            similar=_strongest(_with_diagonal(similar), neighbours),
            dissimilar=_strongest(_dissimilar(similar, counts, _hot(counts, COLD_USERS), neighbours), neighbours),
        )


class Neighbours(nn.Module):
    """Computes some rows of (sparse matrix @ x). The entries of all rows are stored as lists of equal length."""

    index: Tensor
    weight: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        (row, column), rows = matrix.indices(), matrix.shape[0]
        start, place = _places(row, rows)
        width = max(1, int(start.diff().max())) if rows else 1
        index, weight = torch.zeros(rows, width, dtype=torch.int64), torch.zeros(rows, width)
        index[row, place], weight[row, place] = column, matrix.values()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, row_B: Tensor, x_nD: Tensor) -> Tensor:
        """(B, D) rows `row_B` of matrix @ x, in float32 at least; reads only the entries of these rows."""
        x_nD = at_least_float32(x_nD)
        weight = self.weight[row_B].to(x_nD.dtype)
        with torch.autocast(x_nD.device.type, enabled=False):
            return F.embedding_bag(self.index[row_B], x_nD, mode="sum", per_sample_weights=weight)


def _recent(interactions: TrainingInteractions) -> TrainingInteractions:
    """The last LAST_ITEMS interactions of every user."""
    length = interactions.offsets.diff()
    left = (interactions.offsets[1:] - LAST_ITEMS)[interaction_users(interactions)]
    kept = interactions.items[torch.arange(len(interactions.items)) >= left]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length.clamp(max=LAST_ITEMS).cumsum(0)])
    return TrainingInteractions(offsets, kept)


def _transitions(interactions: TrainingInteractions, n_items: int, strong: int) -> tuple[Tensor, Tensor]:
    """(I, I) counts of how often the column's item came later than the row's item, and (I, I) sums of nearness.

    Two items at distance d in a sequence of n items have nearness (n - d) / n. The second matrix has only the pairs
    whose count is above `strong`.
    """
    user = interaction_users(interactions)
    items, length = interactions.items, interactions.offsets.diff()[user]
    values = torch.zeros(0, 2, dtype=torch.float64)
    key = torch.zeros(0, dtype=torch.int64)
    waiting: list[tuple[Tensor, Tensor]] = []
    for distance in range(1, int(length.max()) if len(length) else 0):
        at = (user[distance:] == user[:-distance]).nonzero().squeeze(1)
        nearness = (length[at] - distance).double() / length[at]
        waiting.append(
            (items[at] * n_items + items[at + distance], torch.stack([torch.ones_like(nearness), nearness], 1))
        )
        if sum(len(k) for k, _ in waiting) > _BLOCK:
            key, values, waiting = *_add_up([(key, values), *waiting]), []
    key, values = _add_up([(key, values), *waiting])
    row, column = key // n_items, key % n_items
    many = values[:, 0] > strong
    counts = sparse_matrix(row, column, values[:, 0].float(), (n_items, n_items))
    return counts, sparse_matrix(row[many], column[many], values[many, 1].float(), (n_items, n_items))


def _add_up(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sorted distinct keys (n,), and the sums (n, ...) of the values of each key."""
    key, order = torch.cat([k for k, _ in parts]).sort()
    values = torch.cat([v for _, v in parts])[order]
    if not len(key):
        return key, values
    new = torch.cat([torch.ones(1, dtype=torch.bool), key[1:] != key[:-1]])
    key = key[new]
    return key, values.new_zeros(len(key), *values.shape[1:]).index_add_(0, new.cumsum(0) - 1, values)


def _similarity(counts: Tensor, neighbours: int) -> Tensor:
    """(U, U) share of the interactions of two users that are with items of both; the diagonal is empty.

    Rows keep their `neighbours` highest entries.
    """
    (user, item), value = counts.indices(), counts.values()
    users, n_items = counts.shape
    total = value.new_zeros(users).index_add_(0, user, value)
    # sort by item, and the users of an item by the length of their history, the shortest first
    order = total[user].argsort(stable=True)
    order = order[item[order].argsort(stable=True)]
    _, place = _places(item[order], n_items)
    listed = order[place < USERS_PER_ITEM]
    start, _ = _places(item[listed], n_items)
    parts = []
    for entries in _blocks(start.diff()[item], user):
        mine, other = _join(entries, item, start)
        other = listed[other]
        key, shared = _add_up([(user[mine] * users + user[other], value[mine] + value[other])])
        row, column = key // users, key % users
        shared = shared / (total[row] + total[column])
        parts.append(_strongest_of(row, column, shared * (row != column), neighbours))
    return _joined(parts, (users, users))


def _incompatible(pairs: Tensor, strong: int, hot: Tensor, neighbours: int) -> Tensor:
    """(I, I) for pairs of `hot` items that are never in one sequence: sums of counts with common strong neighbours."""
    (row, column), count, n_items = pairs.indices(), pairs.values(), pairs.shape[0]
    both = sparse_matrix(torch.cat([row, column]), torch.cat([column, row]), count.repeat(2), (n_items, n_items))
    (row, column), count = both.indices(), both.values()
    kept = (count > strong) & (row != column)
    strong_pairs = sparse_matrix(row[kept], column[kept], count[kept], (n_items, n_items))
    return _two_steps(strong_pairs, row * n_items + column, hot, ITEMS_JOINED, neighbours)


def _dissimilar(similar: Tensor, counts: Tensor, hot: Tensor, neighbours: int) -> Tensor:
    """(U, U) for pairs of `hot` users who share no item: sums of similarities to users who are similar to both."""
    users = counts.shape[0]
    (user, item), _ = counts.indices(), counts.values()
    kept = hot[user]
    order = item[kept].argsort(stable=True)
    of_item = user[kept][order]
    start, _ = _places(item[kept][order], counts.shape[1])
    entries = kept.nonzero().squeeze(1)
    together = []
    for part in _blocks(start.diff()[item[entries]], user[entries]):
        mine, other = _join(entries[part], item, start)
        together.append((user[mine] * users + of_item[other]).unique())
    known = torch.cat(together) if together else torch.zeros(0, dtype=torch.int64)
    return _two_steps(similar, known, hot, USERS_JOINED, neighbours)


def _two_steps(matrix: Tensor, together: Tensor, hot: Tensor, joined: int, neighbours: int) -> Tensor:
    """(n, n) entries (a, b): the sum of m[a, k] + m[b, k] over all k for which row a and row b both have an entry.

    Only for a != b, both `hot`, and (a, b) not in `together`, which holds the keys a * n + b, sorted. Each k uses only
    its `joined` highest entries. Rows keep their `neighbours` highest entries.
    """
    size = matrix.shape[0]
    (row, column), value = matrix.indices(), matrix.values()
    kept = hot[row]
    # A column k (a middle) with entries in very many rows would pair all these rows with each other. So each middle
    # pairs only the `joined` rows with the highest entries.
    by_middle = sparse_matrix(column[kept], row[kept], value[kept], (size, size))
    (middle, row), value = by_middle.indices(), by_middle.values()
    near = _joined([_strongest_of(middle, row, value, joined)], (size, size)).t().coalesce()
    (row, column), value = near.indices(), near.values()
    order = column.argsort(stable=True)
    start, _ = _places(column[order], size)
    parts = []
    for entries in _blocks(start.diff()[column], row):
        mine, other = _join(entries, column, start)
        other = order[other]
        key, total = _add_up([(row[mine] * size + row[other], value[mine] + value[other])])
        at = torch.searchsorted(together, key).clamp(max=max(0, len(together) - 1))
        apart = together[at] != key if len(together) else torch.ones_like(key, dtype=torch.bool)
        a, b = key // size, key % size
        parts.append(_strongest_of(a, b, total * (apart & (a != b)), neighbours))
    return _joined(parts, (size, size))


def _join(entries: Tensor, key: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of an entry (n,) and each place of its key's list, as two tensors. List k is start[k] to start[k + 1]."""
    sizes = start.diff()[key[entries]]
    mine = entries.repeat_interleave(sizes)
    first = start[key[entries]] - (sizes.cumsum(0) - sizes)
    return mine, torch.arange(len(mine)) + first.repeat_interleave(sizes)


def _blocks(cost: Tensor, row: Tensor) -> list[Tensor]:
    """The entries (n,), sorted by `row`, cut into blocks of whole rows with a cost of about _BLOCK each."""
    if not len(cost):
        return []
    block = cost.cumsum(0) // _BLOCK
    # a row belongs to the block of its first entry
    starts = torch.cat([torch.ones(1, dtype=torch.bool), row[1:] != row[:-1]])
    block = block[starts][starts.cumsum(0) - 1]
    sizes = torch.unique_consecutive(block, return_counts=True)[1].tolist()
    return list(torch.split(torch.arange(len(cost)), sizes))


def _hot(counts: Tensor, cold: float) -> Tensor:
    """(n,) bool: False for the share `cold` (rounded up) of the rows of `counts` with the lowest sums, else True."""
    total = torch.zeros(counts.shape[0]).index_add_(0, counts.indices()[0], counts.values())
    seen = total.gt(0).nonzero().squeeze(1)  # leaves out empty rows, such as padding
    kept = seen[total[seen].argsort(stable=True)][math.ceil(cold * len(seen)) :]
    return torch.zeros_like(total, dtype=torch.bool).index_fill_(0, kept, True)


def _with_diagonal(matrix: Tensor) -> Tensor:
    """The square matrix plus the identity."""
    own, size = torch.arange(matrix.shape[0]), matrix.shape[0]
    (row, column), value = matrix.indices(), matrix.values()
    value = torch.cat([value, torch.ones(len(own))])
    return sparse_matrix(torch.cat([row, own]), torch.cat([column, own]), value, (size, size))


def _strongest(matrix: Tensor, neighbours: int) -> Tensor:
    """The `neighbours` highest entries of each row, divided by their sum."""
    (row, column), value = matrix.indices(), matrix.values()
    return row_normalised(_joined([_strongest_of(row, column, value, neighbours)], tuple(matrix.shape)))


def _strongest_of(row: Tensor, column: Tensor, value: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `neighbours` highest entries above 0 of each row; of equal entries the first. `row` must be sorted."""
    entry = (value > 0).nonzero().squeeze(1)
    if not len(entry):
        return row[entry], column[entry], value[entry]
    number = torch.unique_consecutive(row[entry], return_inverse=True)[1]
    _, place = _places(number, int(number[-1]) + 1)
    width = int(place.max()) + 1
    # the bits of positive floats have the order of the floats; of equal floats, the earlier place has the higher rank
    rank = (value[entry].float().contiguous().view(torch.int32).long() << 32) - place
    kept = []
    for rows in range(0, int(number[-1]) + 1, max(1, _BLOCK // width)):
        part = slice(*torch.searchsorted(number, torch.tensor([rows, rows + max(1, _BLOCK // width)])).tolist())
        if width <= neighbours:
            kept.append(entry[part])
            continue
        ranks = rank.new_zeros(int(number[part][-1]) + 1 - rows, width)
        ranks[number[part] - rows, place[part]] = rank[part]
        last = ranks.topk(neighbours, dim=1).values[:, -1]
        kept.append(entry[part][rank[part] >= last[number[part] - rows]])
    chosen = torch.cat(kept)
    return row[chosen], column[chosen], value[chosen]


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], shape: tuple[int, ...]) -> Tensor:
    if not parts:
        nothing = torch.zeros(0, dtype=torch.int64)
        parts = [(nothing, nothing, torch.zeros(0))]
    row, column, value = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return sparse_matrix(row, column, value, (shape[0], shape[1]))


def _places(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(rows + 1,) index of each row's first entry in the sorted `row` (n,), and (n,) place of each entry in its row."""
    start = torch.searchsorted(row.contiguous(), torch.arange(rows + 1))
    return start, torch.arange(len(row)) - start[row]
