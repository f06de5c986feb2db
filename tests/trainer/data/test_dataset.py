"""A written dataset: its format, the data derived from it, and its copies."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from models.nn.content import ScaledContent
from tests.helpers.small_dataset import N_ITEMS, PRESENT, RAW, L, U, write
from trainer.batches.item_table import load_table, table_bytes
from trainer.data.format import splits
from trainer.data.format.content import Content
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import load_manifest
from trainer.data.format.node_copy import materialise
from trainer.data.format.shards import read_shard, shard_list

CPU = torch.device("cpu")


@pytest.fixture
def url(root: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_ids_and_titles(root: Path) -> None:
    dataset = Dataset.open(root)
    assert dataset.user_ids()[7] == "user 7"
    assert dataset.item_ids()[:2] == ["item 0", "item 1"]
    assert dataset.item_titles()[:3] == ["title 0", None, "title 2"]
    frame = pl.read_parquet(root / "items.parquet")
    assert frame["row"].to_list() == list(range(1, N_ITEMS + 1))
    assert frame["train_count"].to_list() == dataset.train_counts()[1:].tolist()
    dataset.verify()


def test_the_table_holds_the_raw_vectors_and_their_moments_over_training_items(root: Path) -> None:
    dataset = Dataset.open(root)
    counts = dataset.train_counts()[1:]
    stored = RAW.astype(np.float16)
    used = stored[PRESENT & (counts > 0)].reshape(-1, 4).astype(np.float64)
    info = dataset.manifest.content["sequence"]
    np.testing.assert_allclose(info.mean, used.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(info.std, used.std(axis=0), rtol=1e-6)
    assert info.missing == int((~PRESENT).sum())
    table = load_table(dataset, CPU, "resident")
    rows = torch.arange(N_ITEMS + 1)
    expected = np.where(PRESENT[:, None, None], stored, 0)
    assert np.array_equal(table.gather("sequence", rows)[1:].numpy(), expected.astype(np.float32))
    assert table.present("sequence", rows)[1:].tolist() == PRESENT.tolist()
    assert table.moments("sequence").mean.tolist() == pytest.approx(info.mean)
    assert table.moments("sequence").deviation.tolist() == pytest.approx(info.std)
    standard = ScaledContent(table, "text", "standard")(rows)
    assert standard[1:, 0].std() > 0.5
    assert standard[:, 1:].abs().max() == 0  # a constant becomes zero, not an amplified rounding error


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_resident_and_memory_mapped_tables_agree(root: Path, shape: tuple[int, ...]) -> None:
    dataset = Dataset.open(root)
    resident, mapped = (load_table(dataset, CPU, where) for where in ("resident", "mmap"))
    rows = torch.randint(0, N_ITEMS + 1, shape, generator=torch.Generator().manual_seed(0))
    for table in (resident, mapped):
        assert (table.n_items, dict(table.widths), dict(table.kinds)) == (
            N_ITEMS + 1,
            {"sequence": (2, 4), "text": (3,)},
            {"sequence": "frames", "text": "title"},
        )
        assert table.gather("sequence", rows).shape == (*shape, 2, 4)
        assert table.gather("sequence", rows).dtype == torch.float32
        assert not table.present("text", torch.zeros(shape, dtype=torch.int64)).any()  # padding
    assert torch.equal(resident.gather("sequence", rows), mapped.gather("sequence", rows))
    assert torch.equal(resident.present("sequence", rows), mapped.present("sequence", rows))
    assert table_bytes(dataset.manifest) == (N_ITEMS + 1) * (2 * (8 + 3) + 2)


def test_shards_hold_table_and_training_rows(root: Path) -> None:
    dataset = Dataset.open(root)
    table = load_table(dataset, CPU, "resident")
    seen = 0
    for shard in shard_list(str(root), dataset.manifest, "items"):
        for block in read_shard(shard):
            rows = torch.from_numpy(block["rows"]).long()
            seen += len(rows)
            assert np.array_equal(block["sequence"].astype(np.float32), table.gather("sequence", rows).numpy())
    assert seen == N_ITEMS
    users = []
    for shard in shard_list(str(root), dataset.manifest, "rows"):
        for block in read_shard(shard):
            users += block["user"].tolist()
    assert len(users) == dataset.manifest.train_rows == dataset.row_offsets[-1]
    assert np.array_equal(np.bincount(users, minlength=U), np.diff(dataset.row_offsets))


def _same(vector: list[float]) -> Content:
    return Content((3,), lambda a, b: (np.tile(vector, (b - a, 1)), np.arange(a, b) > 3), "title", "some encoder")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (_same([0, 0, 0]), r"'text' \(title, some encoder\) tells no item from another: every item has a zero vector"),
        (_same([1, 2, 3]), r"all items have the same vector; correct the vectors, or prepare the dataset without them"),
        (Content((3,), lambda a, b: (np.ones((b - a, 3)), np.zeros(b - a, bool)), "title", "e"), "no item has any"),
        (Content((3,), lambda a, b: (1e5 * np.arange(a, b)[:, None] ** [0, 1, 2], np.ones(b - a, bool)), "title", "e"),
         "item number 0 holds 100000, beyond 65,504"),
    ],
)  # fmt: skip
def test_content_that_cannot_be_right_is_refused(tmp_path: Path, content: Content, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        write(tmp_path / "data", content={"text": content})
    assert not (tmp_path / "data").exists()


def test_content_that_half_precision_rounds_away_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=(N_ITEMS, 3)) * [0.1, 0.1, 1] + [1000, 0, 1000]
    written = Content((3,), lambda a, b: (values[a:b], np.ones(b - a, bool)), "title", "e")
    write(tmp_path / "data", content={"text": written})
    warned = capsys.readouterr().err
    assert "content 'text': 2 of 3 dimensions lie so far from 0, for how little they vary" in warned
    mean = values.mean(axis=0)
    centred = Content((3,), lambda a, b: (values[a:b] - mean, np.ones(b - a, bool)), "title", "e")
    write(tmp_path / "centred", content={"text": centred})
    assert "dimensions lie" not in capsys.readouterr().err


@pytest.mark.parametrize(("spread", "warned"), [(0.001, True), (0.0, False)])
def test_a_dimension_that_rounds_to_one_value_is_told_and_a_constant_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spread: float, warned: bool
) -> None:
    values = np.random.default_rng(0).normal(size=(N_ITEMS, 2)) * [spread, 1] + [1000.3, 0]
    write(tmp_path, content={"text": Content((2,), lambda a, b: (values[a:b], np.ones(b - a, bool)), "title", "e")})
    assert ("1 of 2 dimensions lie so far from 0" in capsys.readouterr().err) == warned


lengths = st.lists(st.integers(3, 15), min_size=1, max_size=8)


@given(lengths, st.integers(1, 6), st.integers(0, 99))
def test_training_rows_are_prefixes(n: list[int], max_length: int, seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    items = np.random.default_rng(seed).integers(1, 9, offsets[-1]).astype(np.int32)
    expected = []
    for u in range(len(n)):
        own = items[offsets[u] : offsets[u + 1] - 2].tolist()
        for t in range(1, len(own)):
            history = own[max(0, t - max_length) : t]
            expected.append((u, history + [0] * (max_length - len(history)), len(history), own[t]))
    starts = splits.row_offsets(offsets)
    got = splits.training_rows(np.arange(starts[-1]), offsets, items, starts, max_length)
    rows = zip(*(got[name].tolist() for name in ("user", "history", "length", "target")), strict=True)
    assert list(rows) == expected


@given(lengths, st.integers(0, 99))
def test_counts_and_cold_targets(n: list[int], seed: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    items = np.random.default_rng(seed).integers(1, 30, offsets[-1]).astype(np.int32)
    own = [items[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    training = [item for some in own for item in some[:-2]]
    counts = splits.train_counts(offsets, items, 30)
    assert counts.tolist() == [training.count(i) for i in range(31)]
    for split, back in (("validation", -2), ("test", -1)):
        mask = splits.cold_mask(offsets, items, counts, split)  # type: ignore[arg-type]
        assert mask.tolist() == [some[back] not in training for some in own]
    for block in (1, 3, 1 << 16):
        assert splits.distinct_pairs(offsets, items, 30, block) == sum(len({*some}) for some in own)


def test_derived_views(root: Path) -> None:
    dataset = Dataset.open(root)
    interactions_ = dataset.training_interactions()
    assert interactions_.offsets.dtype == interactions_.items.dtype == torch.int64
    for u in (0, U - 1):
        own = interactions_.items[interactions_.offsets[u] : interactions_.offsets[u + 1]].tolist()
        assert own == dataset.items[dataset.offsets[u] : dataset.offsets[u + 1] - 2].tolist()
    users, positions = dataset.eval_rows("test")
    assert users.tolist() == list(range(U))
    assert positions.tolist() == (dataset.offsets[1:] - 1).tolist()
    for split in splits.SPLITS:
        cold = getattr(dataset.manifest.splits, split).cold_targets
        assert cold == dataset.cold_mask(split).sum() > 0


def test_equal_data_has_equal_fingerprint(root: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    assert again.fingerprint == load_manifest(root).fingerprint
    assert write(tmp_path / "other", max_length=L + 1).fingerprint != again.fingerprint


def test_copy_from_url_is_the_same_dataset(root: Path, url: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: materialise(url, tmp_path / "cache"), range(4)))
    (copied,) = copies
    assert not (copied / "shards").exists()
    for path in [*copied.glob("table/*"), *copied.glob("*"), *copied.glob("sequences/*")]:
        if path.is_file():
            assert path.read_bytes() == (root / path.relative_to(copied)).read_bytes(), path
    dataset = Dataset.open(url, tmp_path / "cache")
    assert dataset.root == copied
    dataset.verify()
    rows = [b for s in shard_list(dataset.source, dataset.manifest, "rows") for b in read_shard(s)]
    assert sum(len(b["row"]) for b in rows) == dataset.manifest.train_rows


def test_half_made_copy_is_made_again(root: Path, tmp_path: Path) -> None:
    stale = tmp_path / f".{load_manifest(root).fingerprint[:32]}.partial-0123abc_"
    stale.mkdir()
    assert Dataset.open(materialise(str(root), tmp_path)).manifest.users == U
    assert not stale.exists()
