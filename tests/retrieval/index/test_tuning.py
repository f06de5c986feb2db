"""How finely an index is divided and how widely it searches: the recall asked for, with the least work."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from models.errors import UserError
from retrieval.index import kmeans
from retrieval.index.build import build_index, load_index, recall_against_exact
from retrieval.index.ivf import Ivf
from retrieval.index.ivfpq import IvfPq
from retrieval.index.kinds import cheapest, suggested_kind
from retrieval.index.tune import rescored
from tests.helpers.clustered import clustered

CHECKSUM = "a" * 64


def test_recall_counts_ties_as_found_and_misses_as_missed() -> None:
    users = np.ones((3, 2), dtype=np.float32)
    items = np.ones((9, 2), dtype=np.float32)  # all tie: whichever FAISS returns is right
    assert recall_against_exact(build_index(items, "flat", checksum=CHECKSUM), users, items, 4) == 1.0
    other = items * np.linspace(1, 2, 9, dtype=np.float32)[:, None]  # here item 8 is best
    # an index of other vectors, in which low rows are best
    wrong = build_index(other[::-1].copy(), "flat", checksum=CHECKSUM)
    assert recall_against_exact(wrong, users, other, 2, size=2) == 0.0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_finds_the_recall_that_was_asked_for(kind: str) -> None:
    """Of other users than those by which it was found, and with no more effort than that needs."""
    items, users = clustered(), clustered(200, seed=2)[1:]
    indices = {
        recall: build_index(items, kind, checksum=CHECKSUM, device="cpu", queries=clustered(200, seed=9), recall=recall)
        for recall in (0.5, 0.9, 0.99)
    }
    for recall, index in indices.items():
        assert recall_against_exact(index, users, items, 20) > recall - 0.01
        assert index.record.tuned is not None
        assert (index.record.tuned.enough, index.record.tuned.queries) == (True, 200)
    efforts = [index.record.parameters["nprobe" if kind == "ivf" else "efSearch"] for index in indices.values()]
    assert efforts == sorted(efforts)
    assert efforts[0] < efforts[-1]


def test_an_index_that_cannot_reach_the_recall_says_so() -> None:
    """Two bytes of 16 coordinates: more lists do not mend what was rounded, so no more of them are searched."""
    items, users = clustered(), clustered(200, seed=9)[1:]
    index = build_index(items, "ivfpq", IvfPq(bytes=2, rescore=1), checksum=CHECKSUM, device="cpu", queries=users)
    assert index.record.tuned is not None
    assert not index.record.tuned.enough
    assert index.record.tuned.recall < 0.95
    assert 1 <= int(index.record.parameters["nprobe"]) < 51
    more = build_index(items, "ivfpq", IvfPq(rescore=1), checksum=CHECKSUM, device="cpu", queries=users)
    assert more.record.parameters["bytes"] == 8
    assert more.record.tuned is not None
    assert more.record.tuned.recall > index.record.tuned.recall
    with pytest.raises(ValueError, match="ivf needs queries"):
        build_index(items, "ivf", checksum=CHECKSUM, device="cpu")


def test_rounded_vectors_find_the_recall_with_exact_ones(tmp_path: Path) -> None:
    """Two bytes of 16 coordinates, and of what they find the best by exact vectors; also when it was saved."""
    items, users = clustered(), clustered(300, seed=2)[1:]
    index = build_index(items, "ivfpq", IvfPq(bytes=2), checksum=CHECKSUM, device="cpu", queries=clustered(200, seed=9))
    assert index.record.tuned is not None
    assert index.record.tuned.enough
    assert int(index.record.parameters["rescore"]) > 1
    assert recall_against_exact(index, users, items, 20) > 0.98
    scores, ids = index.search(users, 20)
    np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", users, items[ids]), rtol=1e-5)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    index.save(tmp_path / "ivfpq")
    again = load_index(tmp_path / "ivfpq", CHECKSUM, items, device="cpu").search(users, 20)
    np.testing.assert_array_equal(again[1], ids)


def test_rescoring_keeps_the_best_and_marks_what_is_missing() -> None:
    items = np.array([[9, 9], [1, 0], [3, 0], [2, 0], [3, 0]], dtype=np.float32)
    users, ids = np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([[3, 0, 4, 2], [1, 0, 0, 0]])
    scores, best = rescored(users, items, ids, 3)
    assert best.tolist() == [[2, 4, 3], [1, 0, 0]], "equal scores by row, padding never"
    assert scores.tolist() == [[3, 3, 2], [-1, -np.inf, -np.inf]]
    assert rescored(users, items, ids[:, :1], 2)[1].tolist() == [[3, 0], [1, 0]]


def test_lists_are_as_fine_as_is_least_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lists of 400 items each, to begin with, of which 7 are searched; with 160, 52 of them: half the products."""
    monkeypatch.setattr("retrieval.index.kmeans.TRAINING_POINTS", 400)
    items = np.concatenate([clustered(1), clustered(4000)])
    users, others = clustered(200, seed=9)[1:], clustered(300, seed=2)[1:]
    found = {}
    for searches in (None, 10**6, 10):
        index = build_index(items, "ivf", checksum=CHECKSUM, device="cpu", queries=users, searches=searches)
        found[searches] = index.record.parameters["nlist"]
        assert index.record.tuned is not None
        assert index.record.tuned.enough
        assert recall_against_exact(index, others, items, 20) > 0.96
    assert found == {None: 160, 10**6: 160, 10: 10}, "ten searches do not repay another build"
    fixed = build_index(items, "ivf", Ivf(lists=10), checksum=CHECKSUM, device="cpu", queries=users)
    assert fixed.record.parameters["nlist"] == 10
    with pytest.raises(UserError, match=r"lists is 5,000, and there are 4,000 items"):
        build_index(items, "ivf", Ivf(lists=5000), checksum=CHECKSUM, device="cpu", queries=users)


def test_centroids_in_two_levels_follow_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    items = clustered(4000)[1:]
    one = kmeans.centroids(faiss, items, 100)
    assert kmeans.products(3999, 100) == 10 * 3900 * 100
    monkeypatch.setattr("retrieval.index.kmeans._TWO_LEVELS", 50)
    two = kmeans.centroids(faiss, items, 100)
    assert kmeans.products(3999, 100) == 10 * 3900 * (10 + 10)
    assert two.shape == one.shape == (100, 16)
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, rtol=1e-5)
    near = [float((items @ each.T).max(axis=1).mean()) for each in (one, two)]
    assert near[1] > 0.98 * near[0]


def test_more_probes_find_more() -> None:
    items, users = clustered(), clustered(100, seed=2)[1:]
    built = [build_index(items, "ivf", Ivf(nprobe=n), checksum=CHECKSUM, device="cpu") for n in (1, 4, 51)]
    recalls = [recall_against_exact(index, users, items, 20) for index in built]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1] == 1.0


def test_an_approximate_index_is_suggested_where_exact_answers_are_slow() -> None:
    assert [suggested_kind(items) for items in (1, 99_999, 100_000, 10**9)] == ["flat", "flat", "ivf", "ivf"]


def test_what_is_least_work_ranks() -> None:
    """Of 10^6 items k-means makes 63 parts and then 4,000 lists, each in 10 iterations over 39 items of each list, and
    each item is put into one: as much work as ranking 10 * 39 * 4,000 * (63 + 64) / 10^6 + 4,000 = 4,198 users, and
    256 + 1,000 are ranked exactly.
    """
    for items, users, kind, why in (
        (99_999, 10**9, "exact", "99,999 items, fewer than 100,000"),
        (10**6, 5_453, "exact", "takes the work of ranking 5,454 users, and there are 5,453"),
        (10**6, 5_454, "ivf", "1,000,000 items; building it takes the work of ranking 5,454 of the 5,454 users"),
    ):
        found, said = cheapest(items, users, measured=1000)
        assert found == kind
        assert why in said
