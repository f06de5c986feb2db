"""FAISS indices against exact top-k, saved and loaded indices, and refused requests."""

import itertools
import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from models.errors import UserError
from retrieval.exact import Histories, exact_topk
from retrieval.folders import present
from retrieval.index.build import build_index, load_index, recall_against_exact
from retrieval.index.faiss_index import Device, FaissIndex, device_of
from retrieval.index.hnsw import Hnsw
from retrieval.index.ivf import Ivf
from retrieval.index.ivfpq import IvfPq
from retrieval.index.kinds import KINDS, parse_options
from retrieval.index.search import by_depth, index_topk, seen_before
from tests.helpers.clustered import clustered
from tests.helpers.killed_at_calls import killed_at

CHECKSUM = "a" * 64


def build(items: np.ndarray, kind: str, device: Device = "cpu") -> FaissIndex:
    users = clustered(200, items.shape[1], seed=9)[1:]
    return build_index(items, kind, checksum=CHECKSUM, device=device, threads=1, queries=users)


def test_flat_equals_exact_topk() -> None:
    items, users = clustered(), clustered(50, seed=1)[1:]
    index = build(items, "flat")
    scores, ids = index.search(users, 20)
    exact_scores, exact_ids = exact_topk(torch.from_numpy(users), torch.from_numpy(items), 20)
    np.testing.assert_allclose(scores, exact_scores.numpy(), rtol=1e-5)
    assert (ids == exact_ids.numpy()).mean() > 0.99  # near-equal scores may change places
    assert recall_against_exact(index, users, items, 20) == 1.0


def test_a_worker_searches_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS that says which GPU it was asked for; torch's number of a GPU is FAISS's."""
    asked = list[tuple[object, int]]()

    def moved(resources: object, number: int, index: object) -> object:
        asked.append((resources, number))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 8)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", moved, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    items = clustered(50)
    for name, number in (("cuda:3", 3), ("cuda:0", 0), ("cuda", 5), ("cpu", None)):
        device, gpu = device_of(torch.device(name))
        index = build_index(items, "flat", checksum=CHECKSUM, device=device, gpu=gpu)
        assert [each for _, each in asked] == ([] if number is None else [number])
        assert ("on cpu" if number is None else f"on gpu {number}") in index.description
        asked.clear()
    with pytest.raises(UserError, match=r"FAISS sees 8 GPU.*GPU 8 was asked for"):
        build_index(items, "flat", checksum=CHECKSUM, device="auto", gpu=8)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_item_rows_and_missing_results_are_padding(kind: str) -> None:
    items = clustered(6)
    index = build(items, kind)
    _, ids = index.search(items[1:3], index.limit)
    assert all(sorted(row) == [1, 2, 3, 4, 5] for row in ids.tolist())
    assert index.search(items[:0], 3)[1].shape == (0, 3)
    for k in (0, 6):
        with pytest.raises(UserError, match=f"can return 1 to 5 items, not {k}"):
            index.search(items[1:3], k)


def starved(kind: str, items: np.ndarray) -> FaissIndex:
    """An index that finds few items: ivf looks into one list, the graph of hnsw has lost its edges."""
    if kind == "ivf":
        return build_index(items, "ivf", Ivf(nprobe=1), checksum=CHECKSUM, device="cpu", threads=1)
    index = build(items, kind)
    if kind == "hnsw":
        edges = index._cpu_index.hnsw.neighbors
        faiss.copy_array_to_vector(np.full(edges.size(), -1, dtype=np.int32), edges)
    return index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [20, 150, 199])
def test_lists_are_whole_however_little_the_index_finds(kind: str, k: int) -> None:
    """Users of long histories too, which leave too few of the first k."""
    items, users = clustered(200), clustered(8, seed=1)[1:]
    rng = np.random.default_rng(0)
    lengths = (0, 1, 5, 60, 150, 190, 199)
    histories = Histories.of([rng.choice(np.arange(1, 200), n, replace=False).tolist() for n in lengths])
    index = starved(kind, items)
    scores, ids = index_topk(index, torch.from_numpy(users), torch.from_numpy(items), k, histories)
    best, exact = exact_topk(torch.from_numpy(users), torch.from_numpy(items), k, histories)
    assert ((ids > 0).sum(1) == (exact > 0).sum(1)).all()
    assert all(len({*row} - {0}) == sum(item > 0 for item in row) for row in ids.tolist()), "nothing is there twice"
    assert not seen_before(ids, histories, 200).any()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    if kind == "flat":
        np.testing.assert_allclose(scores, best, atol=1e-4)


def test_searches_are_as_deep_as_needed_and_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.index.search._FOUND", 64)
    needed = torch.tensor([1, 20, 32, 33, 17, 30, 900, 64])
    found = [(rows.tolist(), depth) for rows, depth in by_depth(needed, 100)]
    assert found == [([0], 1), ([1, 2], 32), ([4, 5], 32), ([3], 64), ([7], 64), ([6], 100)]


def test_what_a_user_gets_does_not_depend_on_the_others() -> None:
    items, users = clustered(), torch.from_numpy(clustered(4, seed=1)[1:])
    index, histories = build(items, "hnsw"), [[], [5], list(range(1, 600))]
    _, together = index_topk(index, users, torch.from_numpy(items), 20, Histories.of(histories))
    for n, history in enumerate(histories):
        _, alone = index_topk(index, users[n : n + 1], torch.from_numpy(items), 20, Histories.of([history]))
        assert torch.equal(alone[0], together[n])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_the_same(kind: str, tmp_path: Path) -> None:
    items, users = clustered(500), clustered(20, seed=3)[1:]
    index = build(items, kind)
    for _ in range(2):  # the second save replaces the first
        index.save(tmp_path / "index" / kind)
    loaded = load_index(tmp_path / "index" / kind, CHECKSUM, items, device="cpu", threads=1)
    assert loaded.description == index.description
    assert kind in loaded.description
    assert "cpu" in loaded.description
    for a, b in zip(index.search(users, 10), loaded.search(users, 10), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in (tmp_path / "index").iterdir()] == [kind]


def test_an_index_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder, items = tmp_path / "flat", clustered(50)
    with pytest.raises(UserError, match=r"there is no index flat in .*mealrec index"):
        load_index(folder, CHECKSUM, items)
    build(items, "flat").save(folder)
    with pytest.raises(UserError, match=r"another model.*mealrec index"):
        load_index(folder, "b" * 64, items)
    with pytest.raises(UserError, match=r"does not hold the items of the model.*mealrec index"):
        load_index(folder, CHECKSUM, items[:-1])
    data = bytearray((folder / "index.faiss").read_bytes())
    data[-1] ^= 1
    (folder / "index.faiss").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_index(folder, CHECKSUM, items)
    (folder / "index.json").write_text('{"kind": "flat"}')
    with pytest.raises(UserError, match=r"index.json cannot be read: parameters.*mealrec index"):
        load_index(folder, CHECKSUM, items)


def test_a_failed_save_leaves_the_older_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flat"
    build(clustered(50), "flat").save(folder)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"is full.*Nothing half-made is left"):
        build(clustered(60), "flat").save(folder)
    assert load_index(folder, CHECKSUM, clustered(50)).record.count == 49
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def _build_again(folder: Path) -> None:
    build(clustered(60), "flat").save(folder)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_built_again_and_killed_there_is_always_an_index(tmp_path: Path, exchanges: bool) -> None:
    counts = list[int]()
    for call in itertools.count(1):
        folder = tmp_path / str(call) / "flat"
        build(clustered(50), "flat").save(folder)
        killed = killed_at(call, exchanges, _build_again, folder)
        counts.append(json.loads((present(folder) / "index.json").read_text())["count"])
        load_index(folder, CHECKSUM, clustered(counts[-1] + 1))
        if not killed:
            break
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (49, 59)
    assert len(counts) >= 3


def test_bad_requests_are_refused() -> None:
    for threads in (0, 10**11):
        with pytest.raises(UserError, match=f"{threads} threads; give 1 to 4,096"):
            build_index(clustered(9), "flat", checksum=CHECKSUM, threads=threads)
    items = clustered(50)
    with pytest.raises(UserError, match="unknown index 'flatt': did you mean 'flat'"):
        build(items, "flatt")
    with pytest.raises(UserError, match=r"nprobe is 2.*choose 1 to 1"):
        build_index(items, "ivf", Ivf(nprobe=2), checksum=CHECKSUM)
    with pytest.raises(UserError, match=r"bytes is 5.*choose of \[1, 2, 4, 8, 16\]"):
        build_index(items, "ivfpq", IvfPq(nprobe=1, bytes=5), checksum=CHECKSUM)
    with pytest.raises(ValueError, match="Hnsw are not the options of ivf"):
        build_index(items, "ivf", Hnsw(), checksum=CHECKSUM)
    with pytest.raises(UserError, match="no item"):
        build(items[:1], "flat")
    with pytest.raises(UserError, match="no hnsw index on a GPU"):
        build(items, "hnsw", "gpu")
    broken = items.copy()
    broken[7, 3] = np.nan
    with pytest.raises(UserError, match="item vector 7"):
        build(broken, "flat")
    with pytest.raises(UserError, match="user vector 7"):
        build(items, "flat").search(broken, 3)
    with pytest.raises(ValueError, match="width 16"):
        build(items, "flat").search(items[:, :3], 3)


def test_options_are_read_from_text_and_refused_by_name() -> None:
    assert parse_options("ivf", {"nprobe": "4"}) == Ivf(nprobe=4)
    assert parse_options("ivf", {}) == Ivf()
    for kind, values, says in (
        ("ivf", {"nprobe": "0"}, "index ivf: nprobe is 0: it must be at least 1"),
        ("hnsw", {"ef_search": 0}, "ef_search is 0"),
        ("hnsw", {"ef_search": "wide"}, "index hnsw: ef_search: Input should be a valid integer"),
        ("hnsw", {"ef_serch": 9}, "hnsw has no option ef_serch: did you mean 'ef_search'"),
        ("ivfpq", {"bytes": 0}, "bytes is 0"),
        ("flat", {"nprobe": 3}, "flat has no option nprobe: it has no options"),
        ("ifv", {}, "unknown index 'ifv': did you mean 'ivf'"),
    ):
        with pytest.raises(UserError, match=says):
            parse_options(kind, values)


def test_an_index_of_a_kind_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    build(clustered(50), "flat").save(folder)
    record = (folder / "index.json").read_text().replace('"flat"', '"flatter"')
    (folder / "index.json").write_text(record)
    with pytest.raises(UserError, match="unknown index 'flatter': did you mean 'flat'"):
        load_index(folder, CHECKSUM, clustered(50))


def test_a_missing_faiss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # how Python marks a module that cannot be imported
    with pytest.raises(UserError, match="pip install 'faiss-cpu"):
        build(clustered(50), "flat")


def test_the_gpu_is_used_or_refused_never_silently_replaced() -> None:
    items, users = clustered(), clustered(50, seed=1)[1:]
    if faiss.get_num_gpus():
        for kind in ("flat", "ivf"):
            index = build(items, kind, "gpu")
            assert "on gpu" in index.description
            assert recall_against_exact(index, users, items, 20) > 0.9
        assert "no GPU form" in build(items, "hnsw", "auto").description
    else:
        with pytest.raises(UserError, match="sees no GPU"):
            build(items, "flat", "gpu")
        assert "on cpu" in build(items, "flat", "auto").description
