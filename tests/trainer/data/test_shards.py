"""Shards: content is read back unchanged; damaged or hostile shards are refused by name, and run or write nothing."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from trainer.data.format import shards
from trainer.data.format.manifest import FileInfo, ShardInfo
from trainer.data.format.shards import Block, Shard, ShardWriter, block_rows, item_spec, read_shard, row_spec

SPEC = item_spec({"text": (3,)})


def block(first: int, rows: int = 4) -> Block:
    return {
        "rows": np.arange(first, first + rows, dtype=np.int32),
        "text": np.full((rows, 3), first, np.float16),
        "text_present": np.ones(rows, np.bool_),
    }


def describe(path: Path, rows: int = 8) -> Shard:
    data = path.read_bytes()
    return Shard(str(path), "items", 1, rows, FileInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()), SPEC)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    root = tmp_path_factory.mktemp("shards")
    with ShardWriter(root, "items") as writer:
        writer.write(block(1))
        writer.write(block(5))
    assert writer.shards == {"shards/items-00000.tar": ShardInfo(kind="items", blocks=2, rows=8)}
    return describe(root / "shards/items-00000.tar")


def changed(shard: Shard, tmp_path: Path, data: bytes) -> Shard:
    """The same manifest entry with other bytes in the file."""
    path = tmp_path / "items-00000.tar"
    path.write_bytes(data)
    return Shard(str(path), shard.kind, shard.first_row, shard.rows, shard.file, shard.spec)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Shard:
    """A tar of these members with the right checksum, so that only its content is wrong."""
    with tarfile.open(path, "w", format=tar_format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return describe(path, 4)


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def members(**replaced: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    arrays = {name: npy(array) for name, array in block(1).items()} | replaced
    return [member(f"items-00000000.{name}.npy", data) for name, data in arrays.items()]


def test_blocks_come_back(good: Shard) -> None:
    blocks = list(read_shard(good))
    assert [b["rows"].tolist() for b in blocks] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert all(set(b) == set(SPEC) and b["text"].dtype == np.float16 for b in blocks)
    assert (blocks[1]["text"] == 5).all()
    blocks[0]["text"][0] = 9  # the caller's own copy, not a view of the stream


def test_equal_data_gives_equal_bytes(good: Shard, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "items") as writer:
        writer.write(block(1))
        writer.write(block(5))
    assert (tmp_path / "shards/items-00000.tar").read_bytes() == Path(good.source).read_bytes()


def test_new_shard_after_so_many_blocks(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "items") as writer:
        for first in range(shards.BLOCKS_PER_SHARD + 1):
            writer.write(block(1 + first, 1))
    assert [(s.blocks, s.rows) for s in writer.shards.values()] == [(shards.BLOCKS_PER_SHARD,) * 2, (1, 1)]


def test_cut_at_every_tar_block(good: Shard, tmp_path: Path) -> None:
    data = Path(good.source).read_bytes()
    for size in range(0, len(data), tarfile.BLOCKSIZE):
        with pytest.raises(UserError, match=r"items-00000\.tar"):
            list(read_shard(changed(good, tmp_path, data[:size])))


def test_thousand_bit_flips(good: Shard, tmp_path: Path) -> None:
    data = Path(good.source).read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(len(data) * 8, 1000, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(UserError, match=r"items-00000\.tar"):
            list(read_shard(changed(good, tmp_path, bytes(flipped))))


@pytest.mark.parametrize(
    ("tail", "message"), [(b"\0" * 512, "bytes, the manifest says"), (b"x", "data after the end of its archive")]
)
def test_longer_than_it_should_be(good: Shard, tmp_path: Path, tail: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_shard(changed(good, tmp_path, Path(good.source).read_bytes() + tail)))


def test_missing_shard_is_named(good: Shard, tmp_path: Path) -> None:
    shard = Shard(str(tmp_path / "items-00007.tar"), "items", 1, 8, good.file, SPEC)
    with pytest.raises(UserError, match=r"items-00007\.tar"):
        list(read_shard(shard))


def test_shard_in_place_of_another(good: Shard) -> None:
    with pytest.raises(UserError, match="does not start at row 9"):
        list(read_shard(Shard(good.source, "items", 9, 8, good.file, SPEC)))


def test_other_row_count_than_the_manifest(good: Shard) -> None:
    with pytest.raises(UserError, match="holds 8 rows, the manifest says 9"):
        list(read_shard(Shard(good.source, "items", 1, 9, good.file, SPEC)))


@pytest.mark.parametrize(
    "hostile",
    [
        member("../items-00000000.text.npy", b"x"),
        member("/tmp/items-00000000.text.npy", b"x"),
        member("a/../../items-00000000.text.npy", b"x"),
        member("items-00000000.text.npy", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("items-00000000.text.npy", kind=tarfile.LNKTYPE, link="../x"),
        member("items-00000000.text.npy", kind=tarfile.CHRTYPE),
        member("items-00000000.text.npy", kind=tarfile.BLKTYPE),
        member("items-00000000.text.npy", kind=tarfile.FIFOTYPE),
        member("items-00000000", kind=tarfile.DIRTYPE),
        member("items-00000000.text.npy", kind=tarfile.GNUTYPE_SPARSE),
        member("items-00000000.text.pyd", b"x"),
        member("items-00000000.text.pkl", b"x"),
        member("items-00000000.text.pth", b"x"),
        member("items-00000000.text.npy.gz", b"x"),
        member("__pickle__.npy", b"x"),
        member("items-00000000.TEXT.npy", b"x"),
    ],
    ids=lambda m: f"{m[0].name}-{m[0].type!r}",
)
@pytest.mark.parametrize("first", [True, False])
def test_hostile_member_is_refused(
    hostile: tuple[tarfile.TarInfo, bytes], first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    shard = tar(inside / "x.tar", [hostile, *members()] if first else [*members(), hostile])
    with pytest.raises(UserError, match=r"x\.tar holds '"):
        list(read_shard(shard))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "side", "x.tar"]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_refused(tar_format: int, tmp_path: Path) -> None:
    shard = tar(tmp_path / "x.tar", [member("items-00000000." + "t" * 120 + ".npy", b"x")], tar_format)
    with pytest.raises(UserError, match="special member"):
        list(read_shard(shard))


@pytest.mark.parametrize("claimed", [shards.MAX_MEMBER_BYTES + 1, 8 << 30])
def test_size_bomb_is_refused_before_it_is_read(claimed: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("items-00000000.text.npy")
    info.size = claimed
    path = tmp_path / "x.tar"
    with path.open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(1 << 40)  # a sparse file, which would take very long to read
    shard = Shard(str(path), "items", 1, 4, FileInfo(bytes=1 << 40, sha256="0" * 64), SPEC)
    with pytest.raises(UserError, match="more than"):
        list(read_shard(shard))


def test_many_members_of_one_block_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """webdataset would keep all members of a key in memory: here 240 MiB in 60 members."""
    data = bytes(4 << 20)
    more = [member(f"items-00000000.more_{chr(97 + n // 26)}{chr(97 + n % 26)}.npy", data) for n in range(60)]
    shard = tar(tmp_path / "x.tar", [*members(), *more])
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="the members of its blocks are rows, text, text_present"):
            list(read_shard(shard))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_field_takes_no_more_than_its_rows_can(tmp_path: Path) -> None:
    shard = tar(tmp_path / "x.tar", members(rows=bytes(20 << 20)))
    with pytest.raises(UserError, match=r"rows\.npy' of 20971520 bytes, more than 6144"):
        list(read_shard(shard))


def test_a_large_member_is_read_in_linear_time(tmp_path: Path) -> None:
    """Copying what is left of a member at each read made 5 MB/s of 24 MiB."""
    rows, width = 4, 3 << 20
    arrays = {
        "rows": np.arange(1, 1 + rows, dtype=np.int32),
        "text": np.zeros((rows, width), np.float16),
        "text_present": np.ones(rows, np.bool_),
    }
    archive = [member(f"items-00000000.{name}.npy", npy(array)) for name, array in arrays.items()]
    shard = replace(tar(tmp_path / "x.tar", archive), spec=item_spec({"text": (width,)}))
    began = time.process_time()
    (found,) = read_shard(shard)
    assert time.process_time() - began < 2
    assert found["text"].shape == (rows, width)


def test_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members():
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"truncated|damaged tar header"):
        list(read_shard(describe(path, 4)))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    array = np.empty(4, object)
    array[:] = [Canary(canary)] * 4
    pickled = npy(array, allow_pickle=True)
    for data in (pickled, pickle.dumps(Canary(canary))):
        shard = tar(tmp_path / "x.tar", members(text=data))
        with pytest.raises(UserError, match="text"):
            list(read_shard(shard))
    assert not canary.exists()
    np.load(io.BytesIO(pickled), allow_pickle=True)  # the test would notice an unpickled canary
    assert canary.exists()


def header(shape: str, descr: str = "'<f2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": npy(np.zeros((4, 3), np.float32))}, "is float32"),
        ({"text": npy(np.zeros((4, 2), np.float16))}, "expected float16"),
        ({"text": npy(np.zeros(4, np.float16))}, "expected float16"),
        ({"text": npy(np.asfortranarray(np.zeros((4, 3), np.float16)))}, "expected float16"),
        ({"text": npy(np.zeros((3, 3), np.float16))}, "different lengths"),
        ({"text": npy(np.zeros((4, 3), np.float16)) + b"x"}, "bytes of data"),
        ({"text": header("(1000000000000, 3)")}, "bytes of data"),
        ({"text": header("(-4, 3)") + bytes(24)}, "bytes of data"),
        ({"text": header("(4, 3)", "'|O'") + bytes(24)}, "expected float16"),
        ({"text": header("((((")}, "not an array"),
        ({"text": b""}, "not an array"),
        ({"rows": npy(np.arange(2, 6, dtype=np.int32))}, "does not start at row 1"),
        ({"other": npy(np.zeros(4))}, "the members of its blocks are"),
    ],
    ids=str,
)
def test_array_that_does_not_fit_the_manifest(bad: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(read_shard(tar(tmp_path / "x.tar", members(**bad))))


def test_member_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has members .*, expected"):
        list(read_shard(tar(tmp_path / "x.tar", members()[1:])))


def test_member_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="duplicate"):
        list(read_shard(tar(tmp_path / "x.tar", [*members(), members()[0]])))


def test_block_twice(tmp_path: Path) -> None:
    again = [member(info.name.replace("00000000", "00000001"), data) for info, data in members()]
    with pytest.raises(UserError, match="does not start at row 5"):
        list(read_shard(tar(tmp_path / "x.tar", [*members(), *again])))


def test_connection_lost_in_the_middle_is_named(good: Shard) -> None:
    data = Path(good.source).read_bytes()

    class Half(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(data[: len(data) // 2])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/items-00000.tar"
        with pytest.raises(UserError, match=r"items-00000\.tar (cannot be read|is truncated)"):
            list(read_shard(Shard(url, "items", 1, 8, good.file, SPEC)))
        server.shutdown()


@given(st.integers(1, 64), st.integers(1, 1 << 14), st.integers(1, 300))
def test_block_members_stay_below_the_cap(steps: int, width: int, length: int) -> None:
    spec = {**item_spec({"sequence": (steps, width)}), **row_spec(length)}
    rows = block_rows(spec)
    assert 1 <= rows <= shards.BLOCK_ROWS
    assert rows * steps * width * 2 < shards.MAX_MEMBER_BYTES


def test_item_too_large_for_a_block() -> None:
    with pytest.raises(UserError, match="one item has"):
        block_rows(item_spec({"sequence": (1000, 100_000)}))
