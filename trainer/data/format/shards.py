"""WebDataset shards of blocks: writing them, and reading them without trusting their content.

A block is one sample of several `KEY.NAME.npy` members, hundreds of rows long. Reading checks every tar header before
webdataset sees it, so links, devices, sparse or extended headers, paths, other extensions and pickles never get in.
"""

from __future__ import annotations

import io
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from models.errors import UserError
from retrieval.files import Digest
from trainer.data.format.manifest import FileInfo, Listed, Manifest, ShardInfo
from trainer.data.storage import join, open_file

Kind = Literal["items", "rows"]
Block = dict[str, NDArray[Any]]
#: per member: dtype, and shape of one row
BlockSpec = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

BLOCK_ROWS = 512
BLOCKS_PER_SHARD = 16
#: largest size of a member, of which _HEADER for the array's header; if one claims more, its data is not read
MAX_MEMBER_BYTES, _HEADER = 32 << 20, 4096
#: the member that holds the row numbers of a block, consecutive over all shards of a kind
INDEX = {"items": "rows", "rows": "row"}
_NAME = re.compile(r"([a-z]+-[0-9]{8})\.([a-z_]+)\.npy")


def item_spec(shapes: Mapping[str, tuple[int, ...]]) -> BlockSpec:
    """Members of an item block for content fields of these shapes per item."""
    spec: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {"rows": (np.dtype("<i4"), ())}
    for field, shape in shapes.items():
        spec[field] = (np.dtype("<f2"), tuple(shape))
        spec[f"{field}_present"] = (np.dtype("|b1"), ())
    return spec


def row_spec(max_length: int, behaviours: bool = False) -> BlockSpec:
    """Members of a block of training rows; `behaviours` only where the dataset has several."""
    shown: BlockSpec = {"behaviours": (np.dtype("|u1"), (max_length,))} if behaviours else {}
    return {
        "row": (np.dtype("<i8"), ()),
        "user": (np.dtype("<i4"), ()),
        "history": (np.dtype("<i4"), (max_length,)),
        "length": (np.dtype("<i2"), ()),
        "target": (np.dtype("<i4"), ()),
        **shown,
    }


def _largest(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return min(MAX_MEMBER_BYTES, _HEADER + BLOCK_ROWS * dtype.itemsize * math.prod(shape))


def block_rows(spec: BlockSpec) -> int:
    """Rows per block: BLOCK_ROWS, fewer where a member would exceed its cap. UserError: one row alone exceeds it."""
    widest = max(dtype.itemsize * math.prod(shape) for dtype, shape in spec.values())
    rows = (MAX_MEMBER_BYTES - _HEADER) // widest
    if rows < 1:
        raise UserError(f"one item has {widest} bytes of content, at most {MAX_MEMBER_BYTES} are possible; use smaller")
    return min(BLOCK_ROWS, rows)


class ShardWriter:
    """Writes blocks to `root/shards/KIND-00000.tar` and on; a context manager. `shards` describes what was written.
    first: number of the first shard, where others write those before it."""

    def __init__(self, root: Path, kind: Kind, first: int = 0) -> None:
        self.root, self.kind = root, kind
        self.shards: dict[str, ShardInfo] = {}
        self._blocks = first * BLOCKS_PER_SHARD
        self._name = ""
        self._stream: IO[bytes] | None = None
        self._tar: Any = None
        (root / "shards").mkdir(exist_ok=True)

    def write(self, block: Block) -> None:
        """Append one block."""
        if self._blocks % BLOCKS_PER_SHARD == 0:
            self.close()
            self._name = f"shards/{self.kind}-{self._blocks // BLOCKS_PER_SHARD:05d}.tar"
            self._stream = (self.root / self._name).open("wb")
            # a fixed time keeps the checksum of equal data equal
            self._tar = TarWriter(self._stream, encoder=False, mtime=0)
            self.shards[self._name] = ShardInfo(kind=self.kind, blocks=0, rows=0)
        members = {f"{name}.npy": _encode(array) for name, array in block.items()}
        self._tar.write({"__key__": f"{self.kind}-{self._blocks:08d}", **members})
        self._blocks += 1
        old = self.shards[self._name]
        rows = old.rows + len(block[INDEX[self.kind]])
        self.shards[self._name] = ShardInfo(kind=self.kind, blocks=old.blocks + 1, rows=rows)

    def close(self) -> None:
        """Finish the shard being written."""
        if self._stream is not None:
            self._tar.close()
            self._stream.close()
            self._stream = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Shard:
    """One shard to read: where it is and what the manifest says about it. first_row: number of its first row."""

    source: str
    kind: Kind
    first_row: int
    rows: int
    file: FileInfo
    spec: BlockSpec


def shard_list(root: str, manifest: Manifest, kind: Kind) -> list[Shard]:
    """The shards of one kind of the dataset at path or URL `root`, in row order."""
    if kind == "items":
        return item_shards(root, manifest, manifest.shapes)
    return _shards(root, manifest, kind, row_spec(manifest.max_length, bool(manifest.behaviours)), 0)


def item_shards(root: str, manifest: Listed, shapes: Mapping[str, tuple[int, ...]]) -> list[Shard]:
    """The item shards at path or URL `root`, in row order; `shapes` are those of one item's entry by field."""
    return _shards(root, manifest, "items", item_spec(shapes), 1)


def _shards(root: str, manifest: Listed, kind: Kind, spec: BlockSpec, first: int) -> list[Shard]:
    shards = []
    for name in manifest.shard_names(kind):
        rows = manifest.shards[name].rows
        shards.append(Shard(join(root, name), kind, first, rows, manifest.files[name], spec))
        first += rows
    return shards


def read_shard(shard: Shard) -> Iterator[Block]:
    """The blocks of a shard, in order, checked against `shard`; its checksum is checked after the last block.

    Raises UserError naming the shard: it cannot be read, is truncated, changed, not the one the manifest lists, or
    holds anything but the expected arrays.
    """
    row = shard.first_row
    with open_file(shard.source) as stream:
        guard = _GuardedTar(stream, shard)
        try:
            files = tar_file_expander([{"url": shard.source, "stream": guard}], eof_value=None)
            for sample in group_by_keys(files):
                block = _decode_block(sample, shard, row)
                row += len(block[INDEX[shard.kind]])
                yield block
            guard.finish(shard.file)
        except (UserError, tarfile.TarError, ValueError) as error:
            # webdataset changes the arguments of exceptions that pass through it: take the message that the guard kept
            message = guard.problem or (str(error) if isinstance(error, UserError) else f"{shard.source}: {error}")
            raise UserError(f"{message}; prepare or copy the dataset again") from None
    if row != shard.first_row + shard.rows:
        raise UserError(f"{shard.source} holds {row - shard.first_row} rows, the manifest says {shard.rows}")


class _GuardedTar:
    """A tar stream that lets through only the .npy members of blocks of `shard`, of bounded size, and hashes them.

    webdataset keeps all members of one key in memory, so only those of one block may pass under it.
    """

    def __init__(self, stream: IO[bytes], shard: Shard) -> None:
        self.problem: str | None = None
        self._stream, self._source = stream, shard.source
        self._largest = {name: _largest(dtype, shape) for name, (dtype, shape) in shard.spec.items()}
        self._key, self._seen = "", set[str]()
        self._digest = Digest()
        self._ready = memoryview(b"")
        self._ended = False

    def read(self, size: int) -> bytes:
        pieces, left = [], size
        while left and (self._ready or not self._ended):
            self._ready = self._ready or memoryview(self._next_member())
            piece, self._ready = self._ready[:left], self._ready[left:]  # views: a member is not copied at each read
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def finish(self, expected: FileInfo) -> None:
        """Read to the end of the file and compare it with the manifest."""
        while piece := self._pull(1 << 20):
            if piece.strip(b"\0"):
                raise self._fail("has data after the end of its archive")
        if self._digest.size != expected.bytes:
            raise self._fail(f"has {self._digest.size} bytes, the manifest says {expected.bytes}")
        if self._digest.sha256 != expected.sha256:
            raise self._fail("does not match its sha256 in the manifest")

    def _next_member(self) -> bytes:
        header = self._exactly(tarfile.BLOCKSIZE)
        if header == bytes(tarfile.BLOCKSIZE):
            self._ended = True
            return header + self._exactly(tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._fail(f"has a damaged tar header ({error})") from None
        if info.type != tarfile.REGTYPE:
            raise self._fail(f"holds {info.name!r}, a link, device, sparse file or other special member")
        largest = self._largest[self._next_field(info.name)]
        if not 0 <= info.size <= largest:
            raise self._fail(f"holds {info.name!r} of {info.size} bytes, more than {largest}")
        return header + self._exactly(-(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)

    def _next_field(self, name: str) -> str:
        """The field that member `name` holds, which its block has not had yet."""
        parts = _NAME.fullmatch(name)
        if not parts:
            raise self._fail(f"holds {name!r}; only members named like items-00000000.text.npy are read")
        key, field = parts.groups()
        if key != self._key:
            self._key, self._seen = key, set()
        if field in self._seen:
            raise self._fail(f"holds {name!r} twice (duplicate)")
        if field not in self._largest:
            raise self._fail(f"holds {name!r}; the members of its blocks are {', '.join(sorted(self._largest))}")
        self._seen.add(field)
        return field

    def _exactly(self, size: int) -> bytes:
        pieces, left = [], size
        while left and (piece := self._pull(left)):
            pieces.append(piece)
            left -= len(piece)
        if left:
            raise self._fail(f"is truncated after {self._digest.size} bytes")
        return b"".join(pieces)

    def _pull(self, size: int) -> bytes:
        try:
            piece = self._stream.read(size)
        except Exception as error:  # the client of each protocol has its own exceptions; all mean that reading failed
            raise self._fail(f"cannot be read ({type(error).__name__}: {error})") from None
        self._digest.update(piece)
        return piece

    def _fail(self, what: str) -> UserError:
        self.problem = f"{self._source} {what}"
        return UserError(self.problem)


def _encode(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decode_block(sample: Mapping[str, Any], shard: Shard, first_row: int) -> Block:
    """The arrays of a webdataset sample, if they are exactly the members, dtypes, shapes and rows of the manifest."""
    where = f"{shard.source}, block {sample['__key__']}"
    members = {name for name in sample if not name.startswith("__")}
    if members != {f"{name}.npy" for name in shard.spec}:
        raise UserError(f"{where} has members {sorted(members)}, expected {sorted(shard.spec)}")
    block = {name: _decode(sample[f"{name}.npy"], *shard.spec[name], f"{where}, {name}") for name in shard.spec}
    index = block[INDEX[shard.kind]]
    if any(len(array) != len(index) for array in block.values()):
        raise UserError(f"{where} has members of different lengths")
    if not np.array_equal(index, np.arange(first_row, first_row + len(index))):
        raise UserError(f"{where} does not start at row {first_row}: a shard is missing, repeated or swapped")
    return block


def _decode(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    buffer = io.BytesIO(data)
    try:
        np.lib.format.read_magic(buffer)
        found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(buffer)
    except Exception as error:  # numpy documents no set of exceptions for a malformed header
        raise UserError(f"{where} is not an array ({type(error).__name__}: {error})") from None
    body = len(data) - buffer.tell()
    count = int(np.prod([1, *found_shape], dtype=object))
    if found_dtype != dtype or fortran or found_shape[1:] != shape or len(found_shape) != len(shape) + 1:
        raise UserError(f"{where} is {found_dtype} {found_shape}, expected {dtype} (n, {', '.join(map(str, shape))})")
    if count * dtype.itemsize != body:
        raise UserError(f"{where} has {body} bytes of data for shape {found_shape}")
    return np.frombuffer(data, dtype, count, buffer.tell()).reshape(found_shape).copy()
