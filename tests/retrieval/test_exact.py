"""Exact ranks and top-k against Python loops, on integer vectors (exact in float32) with many ties."""

import numpy as np
import pytest
import torch

from models.errors import UserError
from retrieval import exact
from retrieval.exact import Histories, check_finite, exact_ranks, exact_topk, for_similarity, score_ranks, score_topk


def brute_force_rank(user: list[int], items: list[list[int]], target: int, masked: set[int]) -> int:
    def score(item: int) -> float:
        return float(sum(a * b for a, b in zip(user, items[item], strict=True)))

    return 1 + sum(
        score(item) >= score(target) for item in range(1, len(items)) if item != target and item not in masked
    )


def brute_force_topk(user: list[int], items: list[list[int]], k: int, excluded: set[int]) -> list[tuple[float, int]]:
    scored = [
        (float(sum(a * b for a, b in zip(user, items[item], strict=True))), item)
        for item in range(1, len(items))
        if item not in excluded
    ]
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:k]
    return best + [(-np.inf, 0)] * (k - len(best))


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[int]], int, int]:
    rng = np.random.default_rng(seed)
    n_users, n_items, width = int(rng.integers(1, 5)), int(rng.integers(2, 14)), int(rng.integers(1, 4))
    users = torch.from_numpy(rng.integers(-2, 3, (n_users, width)).astype(np.float32))
    items = torch.from_numpy(rng.integers(-1, 2, (n_items, width)).astype(np.float32))
    items[0] = 9.0  # if padding were ranked, it would win
    targets = torch.from_numpy(rng.integers(1, n_items, n_users))
    histories = [rng.integers(0, n_items, int(rng.integers(0, 9))).tolist() for _ in range(n_users)]
    return users, items, targets, histories, int(rng.integers(1, 20)), int(rng.choice([1, 40, 1 << 20]))


def test_ranks_and_topk_equal_brute_force_on_1000_cases() -> None:
    for seed in range(1000):
        users, items, targets, histories, k, max_bytes = random_case(seed)
        known = Histories.of(histories)
        ranks = exact_ranks(users, items, targets, known, max_bytes=max_bytes)
        scores, ids = exact_topk(users, items, k, known, max_bytes=max_bytes)
        plain_scores, plain_ids = exact_topk(users, items, k, max_bytes=max_bytes)
        rows = items.int().tolist()
        for b, user in enumerate(users.int().tolist()):
            target, seen = int(targets[b]), set(histories[b])
            assert ranks.all_items[b] == brute_force_rank(user, rows, target, set()), seed
            assert ranks.history_masked[b] == brute_force_rank(user, rows, target, seen), seed
            assert list(zip(scores[b].tolist(), ids[b].tolist(), strict=True)) == brute_force_topk(user, rows, k, seen)
            expected = brute_force_topk(user, rows, k, set())
            assert list(zip(plain_scores[b].tolist(), plain_ids[b].tolist(), strict=True)) == expected, seed


def test_chunks_do_not_change_the_answer_on_real_valued_vectors() -> None:
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randn(40, 8, generator=generator), torch.randn(500, 8, generator=generator)
    targets = torch.randint(1, 500, (40,), generator=generator)
    histories = Histories.of([[int(t), 3, 3, 0] for t in targets])
    whole = exact_ranks(users, items, targets, histories, max_bytes=1 << 30)
    parts = exact_ranks(users, items, targets, histories, max_bytes=9000)
    assert torch.equal(whole.all_items, parts.all_items)
    assert torch.equal(whole.history_masked, parts.history_masked)
    order = (users.double() @ items[1:].double().T).argsort(1, descending=True) + 1
    assert torch.equal(whole.all_items, (order == targets[:, None]).int().argmax(1) + 1)
    assert torch.equal(exact_topk(users, items, 7, max_bytes=9000)[1], order[:, :7])


def test_no_users_give_no_ranks() -> None:
    ranks = exact_ranks(torch.zeros(0, 2), torch.ones(4, 2), torch.zeros(0, dtype=torch.int64), Histories.of([]))
    assert ranks.all_items.shape == ranks.history_masked.shape == (0,)
    scores, ids = exact_topk(torch.zeros(0, 2), torch.ones(4, 2), 3)
    assert scores.shape == ids.shape == (0, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_named(value: float) -> None:
    good, bad = torch.ones(3, 2), torch.ones(3, 2)
    bad[2, 1] = value
    with pytest.raises(UserError, match="item vector 2"):
        exact_topk(good, bad, 1)
    with pytest.raises(UserError, match="user vector 2"):
        exact_ranks(bad, good, torch.tensor([1, 1, 1]), Histories.of([[], [], []]))


@pytest.mark.parametrize("target", [0, 3])
def test_padding_or_unknown_target_is_a_bug(target: int) -> None:
    with pytest.raises(ValueError, match="must be item rows"):
        exact_ranks(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([target]), Histories.of([[]]))


def test_cosine_is_the_inner_product_of_unit_vectors() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(for_similarity(vectors, "cosine"), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert torch.equal(for_similarity(vectors, "dot"), vectors)


def test_the_callers_matmul_precision_is_left_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        exact_topk(torch.ones(1, 2), torch.ones(3, 2), 1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_scores_are_ranked_as_vectors_with_those_scores() -> None:
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.randn(rows, 4, generator=generator).round() for rows in (9, 30))  # rounded: with ties
    targets = torch.randint(1, 30, (9,), generator=generator)
    histories = Histories.of([[1, 2, int(t), 0, 2] for t in targets])
    scores = users @ items.T
    scores[:, 0] = torch.inf  # the score of padding does not matter
    expected = exact_ranks(users, items, targets, histories)
    assert all(torch.equal(a, b) for a, b in zip(score_ranks(scores, targets, histories), expected, strict=True))
    for k, exclude in ((5, None), (40, histories)):
        best, ids = score_topk(scores, k, exclude)
        assert torch.equal(ids, exact_topk(users, items, k, exclude)[1])
        assert torch.equal(best[ids > 0], scores.gather(1, ids)[ids > 0])
    with pytest.raises(UserError, match="score row 0"):
        score_ranks(scores * torch.nan, targets, histories)


@pytest.mark.parametrize(
    ("last", "refused"), [(torch.inf, True), (-torch.inf, True), (torch.nan, True), (3e38, False)], ids=str
)
def test_vectors_are_finite_whatever_their_sum_is(last: float, refused: bool) -> None:
    """Infinities of both signs, and finite values whose sum is beyond float32."""
    vectors = torch.full((5, 3), 3e38)
    vectors[2, 0], vectors[4, 2] = (torch.inf if refused else 3e38), last
    if refused:
        with pytest.raises(UserError, match="item vector 2 holds NaN or an infinite value"):
            check_finite(vectors, "item vector")
    else:
        assert torch.isinf(vectors.sum())
        check_finite(vectors, "item vector")


@pytest.mark.parametrize("width", [700, 640, 40])
def test_of_many_equal_scores_the_lower_items_come_first_in_blocks_too(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_BLOCK", 16)
    scores = torch.randint(0, 9, (30, width), generator=torch.Generator().manual_seed(1)).float()
    scores[:10] = scores[:10].clamp(max=1)
    scores[20] = -torch.inf
    best, columns = exact._best_columns(scores, 5)
    wanted, order = scores.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(best, wanted[:, :5], rtol=0, atol=0)
    torch.testing.assert_close(columns, order[:, :5], rtol=0, atol=0)
