"""SSDRec's relation graphs against loops over sequences, and their encoders node by node."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from models.contract import TrainingInteractions
from models.ssdrec import graphs as ssdrec_graphs
from models.ssdrec.graphs import Relations, SparseRows
from models.ssdrec.relations import ItemRelations, UserRelations
from tests.helpers.model_fixtures import (
    ITEMS,
    assert_same,
    randomise,
)

HIDDEN, USERS = 6, 30
Table = dict[tuple[int, int], float]


def _sequences() -> list[list[int]]:
    """Random walks with repeats; some items are far more frequent than others; one user has no items."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.tensor([0.0, *(1.0 / n for n in range(1, ITEMS))])
    lengths = torch.randint(1, 6, (USERS,), generator=generator).tolist()
    drawn = [torch.multinomial(weight, n, replacement=True, generator=generator).tolist() for n in lengths]
    return [*drawn[:-1], []]


def compressed(sequences: list[list[int]]) -> TrainingInteractions:
    offsets = torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0)
    return TrainingInteractions(offsets, torch.tensor([i for s in sequences for i in s], dtype=torch.int64))


def _dense(table: Table, rows: int, columns: int) -> Tensor:
    matrix = torch.zeros(rows, columns)
    for (row, column), value in table.items():
        matrix[row, column] = value
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30)


def _apart(edges: Table, together: set[tuple[int, int]], hot: set[int]) -> Table:
    """sum over common neighbours k of edges[a, k] + edges[b, k], for hot a, b that are not together."""
    found: Table = defaultdict(float)
    for (a, k), one in edges.items():
        for (b, other), two in edges.items():
            if k == other and a != b and a in hot and b in hot and (a, b) not in together:
                found[a, b] += one + two
    return found


def _hottest(totals: dict[int, int], cold: float) -> set[int]:
    ranked = sorted((n, node) for node, n in totals.items() if n)
    return {node for _, node in ranked[math.ceil(cold * len(ranked)) :]}


def _reference_relations(sequences: list[list[int]], strong: int, cold: tuple[float, float]) -> dict[str, Tensor]:
    users, count, near = len(sequences), defaultdict(float), defaultdict(float)
    bought: Table = defaultdict(float)
    for u, items in enumerate(sequences):
        for i, item in enumerate(items):
            bought[u, item] += 1
            for j in range(i + 1, len(items)):
                count[item, items[j]] += 1
                near[item, items[j]] += (len(items) - (j - i)) / len(items)
    follows = {pair: value for pair, value in near.items() if count[pair] > strong}
    both = {(a, b): count.get((a, b), 0) + count.get((b, a), 0) for a in range(ITEMS) for b in range(ITEMS)}
    edges = {(a, b): value for (a, b), value in both.items() if value > strong and a != b}
    met = {pair for pair, value in both.items() if value}
    alike: Table = {}
    for u, one in enumerate(sequences):
        for v, two in enumerate(sequences):
            shared = sum(item in two for item in one) + sum(item in one for item in two)
            if u != v and shared:
                alike[u, v] = shared / (len(one) + len(two))
    sold = {i: sum(s.count(i) for s in sequences) for i in range(ITEMS)}
    hot_users = _hottest({u: len(s) for u, s in enumerate(sequences)}, cold[1])
    return {
        "user_items": _dense(bought, users, ITEMS),
        "item_users": _dense({(i, u): n for (u, i), n in bought.items()}, ITEMS, users),
        "successors": _dense(follows, ITEMS, ITEMS),
        "predecessors": _dense({(b, a): value for (a, b), value in follows.items()}, ITEMS, ITEMS),
        "incompatible": _dense(_apart(edges, met, _hottest(sold, cold[0])), ITEMS, ITEMS),
        "similar": _dense({**alike, **{(u, u): 1.0 for u in range(users)}}, users, users),
        "dissimilar": _dense(_apart(alike, set(alike), hot_users), users, users),
    }


def _spread_totals() -> list[list[int]]:
    """Sequences without equally frequent items or users, so it is unambiguous which are cold."""
    return [[1 + (u * 7 + k * k) % (ITEMS - 1) for k in range(n)] for u, n in enumerate(range(1, 9))]


@pytest.mark.parametrize("strong", [0, 2])
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_relations_equal_loops_over_sequences(strong: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same for blocks of any size."""
    monkeypatch.setattr(ssdrec_graphs, "_BLOCK", block)
    monkeypatch.setattr(ssdrec_graphs, "COLD_ITEMS", 0.0)
    monkeypatch.setattr(ssdrec_graphs, "COLD_USERS", 0.0)
    sequences = _sequences()
    relations = Relations.of(compressed(sequences), ITEMS, strong, 1000)
    for name, expected in _reference_relations(sequences, strong, (0.0, 0.0)).items():
        actual = getattr(relations, name).to_dense()
        assert expected.any(), name
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_the_coldest_are_incompatible_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssdrec_graphs, "COLD_USERS", 0.5)
    sequences = _spread_totals()
    relations = Relations.of(compressed(sequences), ITEMS, 0, 1000)
    expected = _reference_relations(sequences, 0, (0.0, 0.5))["dissimilar"]
    torch.testing.assert_close(relations.dissimilar.to_dense(), expected)
    assert not relations.dissimilar.to_dense()[:4].any()


def test_rows_keep_their_strongest_neighbours_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssdrec_graphs, "_BLOCK", 50)
    sequences = _sequences()
    whole = Relations.of(compressed(sequences), ITEMS, 0, 1000)
    cut = Relations.of(compressed(sequences), ITEMS, 0, 3)
    for name in ("successors", "predecessors", "similar"):
        before, after = getattr(whole, name).to_dense(), getattr(cut, name).to_dense()
        for row, left in zip(before, after, strict=True):
            best = sorted((-value, column) for column, value in enumerate(row.tolist()) if value)[:3]
            expected = torch.zeros_like(row)
            for value, column in best:
                expected[column] = -value / -sum(v for v, _ in best)
            torch.testing.assert_close(left, expected)


def test_graphs_see_the_last_items_only_and_no_more_users_per_item_than_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssdrec_graphs, "LAST_ITEMS", 3)
    sequences = _sequences()
    relations = Relations.of(compressed(sequences), ITEMS, 0, 1000)
    again = Relations.of(compressed([s[-3:] for s in sequences]), ITEMS, 0, 1000)
    for name, matrix in vars(relations).items():
        assert torch.equal(matrix.to_dense(), getattr(again, name).to_dense()), name
    monkeypatch.setattr(ssdrec_graphs, "USERS_PER_ITEM", 2)
    alike = Relations.of(compressed([[1, 2, 3], [1], [1, 2], [1, 4]]), ITEMS, 0, 1000).similar.to_dense()
    # for item 1 only the two users with the shortest histories count, for item 2 both users
    assert [row.nonzero().flatten().tolist() for row in alike] == [[0, 1, 2], [1, 2], [0, 1, 2], [1, 2, 3]]


def test_relations_of_nobody_and_of_users_without_interactions() -> None:
    nobody = TrainingInteractions(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    for matrix in vars(Relations.of(nobody, ITEMS, 0, 5)).values():
        assert matrix._nnz() == 0
    silent = Relations.of(compressed([[], []]), ITEMS, 0, 5)
    assert torch.equal(silent.similar.to_dense(), torch.eye(2))
    assert SparseRows(silent.user_items)(torch.tensor([1]), torch.ones(ITEMS, 2)).tolist() == [[0.0, 0.0]]


def test_neighbours_equal_rows_of_the_product() -> None:
    matrix = Relations.of(compressed(_sequences()), ITEMS, 0, 1000).user_items
    x = torch.randn(ITEMS, HIDDEN, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 0, USERS - 1, 4])
    assert_same(SparseRows(matrix)(rows, x), (matrix.to_dense().double() @ x)[rows], [x])


def _relations() -> Relations:
    return Relations.of(compressed(_sequences()), ITEMS, 0, 50)


def _join(join: torch.nn.Module, own: Tensor, together: Tensor, apart: Tensor, other: Tensor) -> Tensor:
    """One node by the formula: each relation separately, then their mean."""
    parts = []
    for neighbour in (together, apart):
        same = join.pair[0] * neighbour + join.pair[1] * own + join.shift  # type: ignore[operator, index]
        parts.append(join.relations.weight @ torch.cat([other, same]))  # type: ignore[union-attr]
    mean = (parts[0] + parts[1]) / 2
    inner = join.inner.weight @ mean  # type: ignore[union-attr]
    return join.outer.weight @ (1 / (1 + torch.exp(-inner)))  # type: ignore[union-attr, no-any-return]


def tables() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(  # type: ignore[return-value]
        torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_() for n in (ITEMS, USERS)
    )


def test_item_relations_equal_item_by_item() -> None:
    relations, (item, user) = _relations(), tables()
    module = ItemRelations(relations, HIDDEN, 0.0).double()
    randomise(module)
    after, before, apart, users = (
        getattr(relations, name).to_dense().double()
        for name in ("successors", "predecessors", "incompatible", "item_users")
    )
    rows = []
    for i in range(ITEMS):
        sides = [before[i] @ item, after[i] @ item]
        scores = []
        for weight, side in zip((module.before.weight, module.after.weight), sides, strict=True):
            x = weight @ (item[i] * side)
            scores.append(torch.exp(torch.where(x > 0, x, 0.2 * x).sum() / math.sqrt(HIDDEN)))
        together = (scores[0] * sides[0] + scores[1] * sides[1]) / (scores[0] + scores[1])
        rows.append(_join(module.join, item[i], together, apart[i] @ item, users[i] @ user))
    assert_same(module(item, user), torch.stack(rows), [item, user, *module.parameters()], 1e-6)


def test_user_relations_equal_user_by_user() -> None:
    relations, (item, user) = _relations(), tables()
    module = UserRelations(relations, HIDDEN, 0.0).double()
    randomise(module)
    like, unlike, items = (
        getattr(relations, name).to_dense().double() for name in ("similar", "dissimilar", "user_items")
    )
    chosen = [3, 0, 3, USERS - 1]
    rows = [_join(module.join, user[u], like[u] @ user, unlike[u] @ user, items[u] @ item) for u in chosen]
    actual = module(torch.tensor(chosen), user, item)
    assert_same(actual, torch.stack(rows), [item, user, *module.parameters()], 1e-6)
