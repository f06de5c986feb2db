"""Batches: resident, memory-mapped and streamed rows are those of leave-one-out, compared with a loop over lists."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from models.contract import Batch
from models.errors import UserError
from tests.helpers.tiny_runs import make_dataset
from trainer.batches import loader
from trainer.batches.item_table import table_bytes
from trainer.batches.loader import Loaded, RandomAccess, Sequences, Streamed, choose_placement, load
from trainer.data.format import node_copy, shards
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import SPLITS, Split
from trainer.data.storage import open_file

CPU = torch.device("cpu")
SEED = 9
Row = tuple[int, list[int], int]  # user, history, target


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with pytest.MonkeyPatch.context() as patch:  # 10 shards of 3 small blocks, the last one shorter
        patch.setattr(shards, "BLOCK_ROWS", 8)
        patch.setattr(shards, "BLOCKS_PER_SHARD", 3)
        yield Dataset.open(make_dataset(tmp_path_factory.mktemp("loader") / "data"))


def open_(dataset: Dataset, loader: str, window: int = 4) -> Loaded:
    return load(dataset, CPU, seed=SEED, loader=loader, window=window)


def sequences(dataset: Dataset) -> list[list[int]]:
    offsets, items = dataset.offsets.tolist(), dataset.items.tolist()
    return [items[a:b] for a, b in itertools.pairwise(offsets)]


def expected_rows(dataset: Dataset) -> list[Row]:
    """Training rows in order: every training item except a user's first one, with at most L items before it."""
    limit, rows = dataset.manifest.max_length, []
    for user, items in enumerate(sequences(dataset)):
        training = items[:-2]
        rows += [(user, training[:place][-limit:], training[place]) for place in range(1, len(training))]
    return rows


def rows_of(batch: Batch, limit: int) -> list[Row]:
    assert batch.history.shape == (len(batch), limit)
    assert {t.dtype for t in (batch.user, batch.history, batch.length, batch.target, batch.key)} == {torch.int64}
    rows = []
    for user, history, length, target in zip(
        batch.user.tolist(), batch.history.tolist(), batch.length.tolist(), batch.target.tolist(), strict=True
    ):
        assert history[length:] == [0] * (limit - length), "padding stands on the right"
        rows.append((user, history[:length], target))
    return rows


@pytest.mark.parametrize("loader", ["resident", "mmap", "stream"])
def test_every_loader_gives_the_rows_of_a_plain_loop(dataset: Dataset, loader: str) -> None:
    expected, loaded = expected_rows(dataset), open_(dataset, loader)
    total = len(expected)
    assert loaded.training_rows.count == dataset.manifest.train_rows == total
    assert loaded.placement == loader
    for epoch in (1, 2):
        seen: list[int] = []
        for start in range(0, total, 40):
            positions = np.arange(start, min(start + 40, total))
            ids, batch = loaded.training_rows.row_ids(epoch, positions), loaded.training_rows.batch(epoch, positions)
            assert rows_of(batch, dataset.manifest.max_length) == [expected[i] for i in ids]
            assert batch.key.tolist() == [i + epoch * total for i in ids]
            seen += ids.tolist()
        assert sorted(seen) == list(range(total))


def test_resident_and_memory_mapped_batches_and_tables_are_equal(dataset: Dataset) -> None:
    a, b = open_(dataset, "resident"), open_(dataset, "mmap")
    positions, rows = np.array([5, 0, 77, 5]), torch.tensor([[0, 3], [60, 7]])
    one, two = (loaded.training_rows.batch(3, positions) for loaded in (a, b))
    assert all(map(torch.equal, one.tensors(), two.tensors()))
    for field in ("sequence", "visual", "text"):
        assert torch.equal(a.table.gather(field, rows), b.table.gather(field, rows))
        assert torch.equal(a.table.present(field, rows), b.table.present(field, rows))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_gpu_has_room_for_every_batch_of_the_epoch(dataset: Dataset, size: int) -> None:
    rows = open_(dataset, "resident").training_rows
    assert isinstance(rows, RandomAccess)
    for epoch in (1, 2):
        lengths = [int(n) for n in rows.batch(epoch, np.arange(rows.count)).length]
        rows.batch(epoch, np.arange(size))
        assert rows._most_tokens(size) == max(sum(lengths[i : i + size]) for i in range(rows.count - size + 1))


def test_room_comes_in_few_sizes_and_only_where_it_leaves_padding_out() -> None:
    batch = Batch(*[torch.zeros(64, 10, dtype=torch.int64)] * 6)
    rooms = [loader._with_tokens(batch, tokens).tokens for tokens in range(641)]
    assert all(room == 0 or room >= tokens for tokens, room in enumerate(rooms))
    assert [rooms[tokens] for tokens in (0, 1, 20, 201, 500, 501)] == [0, 20, 20, 220, 500, 0]
    assert len(set(rooms)) <= 32


@pytest.mark.parametrize("window", [1, 2, 3, 10, 99])
def test_a_stream_goes_in_the_order_of_its_windows(dataset: Dataset, window: int) -> None:
    loaded = open_(dataset, "stream", window)
    source = loaded.training_rows
    assert isinstance(source, Streamed)
    assert len(source.order.shard_rows) == 10
    total = source.count
    by_row = open_(dataset, "resident").sequences
    for epoch in (1, 2):
        for start in range(0, total, 64):  # across the borders of windows
            positions = np.arange(start, min(start + 64, total))
            ids = source.order(epoch, positions)
            wanted = by_row.training_batch(torch.from_numpy(ids), epoch)
            got = source.batch(epoch, positions)
            assert all(map(torch.equal, got.tensors(), wanted.tensors()))


def test_a_shard_at_a_url_travels_to_a_node_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of a node, over two epochs; of the copies only those of three windows stay."""
    fetched: list[str] = []

    def counted(source: str) -> IO[bytes]:
        fetched.append(source.rpartition("/")[2])
        return open_file(source)

    remote = Dataset.open(f"file://{dataset.root}", tmp_path / "cache")
    monkeypatch.setattr(node_copy, "open_file", counted)
    workers = [load(remote, CPU, seed=SEED, loader="stream", window=2).training_rows for _ in range(2)]
    local = open_(dataset, "stream", 2).training_rows
    for epoch in (1, 2):
        for start in range(0, local.count, 16):
            positions = np.arange(start, min(start + 16, local.count))
            wanted = local.batch(epoch, positions)
            for worker in workers:
                got = worker.batch(epoch, positions)
                assert all(map(torch.equal, got.tensors(), wanted.tensors()))
    names = remote.manifest.shard_names("rows")
    assert set(fetched) == {Path(name).name for name in names}
    assert len(fetched) <= 2 * len(names) + 2  # a window is read ahead for a third epoch
    assert len(list((tmp_path / "cache").glob("*.shards/*.tar"))) <= 3 * 2


def test_a_stream_begins_anywhere_and_goes_back(dataset: Dataset) -> None:
    """The requests of a resume: the middle of an epoch, then the next epoch; and the single position of a rank."""
    straight, resumed = open_(dataset, "stream", 2).training_rows, open_(dataset, "stream", 2).training_rows
    for epoch, positions in [(3, [150, 151]), (3, [233]), (4, [0]), (3, [10, 220]), (1, [0])]:
        asked = np.array(positions)
        fresh = open_(dataset, "stream", 2).training_rows.batch(epoch, asked)
        assert torch.equal(resumed.batch(epoch, asked).history, fresh.history)
    for start in range(0, straight.count, 50):
        straight.batch(3, np.arange(start, min(start + 50, straight.count)))
    assert torch.equal(straight.batch(4, np.array([7])).key, resumed.batch(4, np.array([7])).key)


@pytest.mark.parametrize("loader", ["resident", "mmap", "stream"])
@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_is_leave_one_out(dataset: Dataset, loader: str, split: Split) -> None:
    loaded, limit, held = open_(dataset, loader), dataset.manifest.max_length, 1 if split == "test" else 2
    users = np.arange(3, dataset.manifest.users, dtype=np.int64)
    batches = list(loaded.evaluation_batches(split, users, 16))
    assert [len(batch) for batch in batches] == [16] * 4 + [13]
    got = [row for batch in batches for row in rows_of(batch, limit)]
    everyone = sequences(dataset)
    assert got == [(u, everyone[u][:-held][-limit:], everyone[u][-held]) for u in users.tolist()]
    assert torch.equal(torch.cat([b.key for b in batches]), torch.from_numpy(users)), "noise is keyed by user"


def test_no_training_row_shows_a_held_out_item_or_the_future(dataset: Dataset) -> None:
    """Compares positions, not item ids, because a user may watch an item again later."""
    loaded = open_(dataset, "resident")
    marked = torch.arange(1, len(dataset.items) + 1, dtype=torch.int32)  # every interaction has a different item
    sequences = loaded.sequences
    single = Sequences(sequences.offsets, marked, sequences.row_offsets, None, sequences.max_length)
    batch = single.training_batch(torch.arange(loaded.training_rows.count), 1)
    last = torch.from_numpy(dataset.offsets)[batch.user + 1]
    assert (batch.target <= last - 2).all()
    assert (batch.history < batch.target[:, None]).all()
    newest = batch.history.gather(1, batch.length[:, None] - 1)[:, 0]
    assert torch.equal(newest, batch.target - 1), "the history ends right before the target"
    assert (batch.length == loaded.sequences.max_length).any()


def test_keys_of_noise_never_repeat(dataset: Dataset) -> None:
    source = open_(dataset, "resident").training_rows
    everything = torch.cat([source.batch(epoch, np.arange(source.count)).key for epoch in (1, 2, 3)])
    assert len(set(everything.tolist())) == 3 * source.count


def test_auto_is_resident_where_it_fits(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_placement("auto", dataset, CPU) == "resident"
    monkeypatch.setattr("trainer.batches.loader.host_memory_available", lambda: 2000)
    assert choose_placement("auto", dataset, CPU) == "mmap"
    assert choose_placement("resident", dataset, CPU) == "resident"


def test_a_gpu_reads_from_the_host_what_it_cannot_hold(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    content = table_bytes(dataset.manifest)
    sequences = 8 * (len(dataset.items) + 2 * len(dataset.offsets))
    free = {"gpu": 0, "host": 0}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free["gpu"], 0))
    monkeypatch.setattr("trainer.batches.loader.host_memory_available", lambda: free["host"])
    for gpu, host, chosen in (
        (2 * (content + sequences), 0, "resident"), (2 * (content + sequences) - 2, 2 * content, "pinned"),
        (2 * sequences, 2 * content, "pinned"), (2 * sequences, 2 * content - 2, "mmap"),
        (2 * sequences - 2, 2 * content, "mmap"),
    ):  # fmt: skip
        free.update(gpu=gpu, host=host)
        assert choose_placement("auto", dataset, torch.device("cuda")) == chosen
        assert choose_placement("pinned", dataset, torch.device("cuda")) == "pinned"
    with pytest.raises(UserError, match="pinned is for a GPU"):
        choose_placement("pinned", dataset, CPU)


def test_a_stream_names_the_shard_that_is_damaged(dataset: Dataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset.root, tmp_path / "copy"))
    shard = copy / "shards/rows-00004.tar"
    shard.write_bytes(shard.read_bytes()[:-3000])
    source = open_(Dataset.open(copy), "stream", 2).training_rows
    with pytest.raises(UserError, match="rows-00004"):
        source.batch(1, np.arange(source.count))


def test_an_order_at_once_and_one_that_is_too_long_for_it_give_the_same_rows(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = [np.arange(3, 9), np.array([5, 0, 7]), np.array([0])]

    def keys() -> list[list[int]]:
        rows = open_(dataset, "resident").training_rows
        return [rows.batch(epoch, part).key.tolist() for epoch in (1, 2, 1) for part in positions]

    at_once = keys()
    monkeypatch.setattr(loader, "_ROWS_AT_ONCE", 0)
    assert keys() == at_once
