"""A dataset at a path or URL, streamed once per node into a local folder that can be memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from models.errors import UserError
from retrieval.files import Digest, locked
from retrieval.folders import whole_folder
from trainer.data.format.manifest import MANIFEST, FileInfo, Manifest, read_manifest, verify_files
from trainer.data.format.shards import Shard, read_shard, shard_list
from trainer.data.format.table_file import TableWriter
from trainer.data.storage import is_url, join, open_file

_STREAMED = ("shards/", "table/")


def materialise(source: str, cache_dir: Path) -> Path:
    """A local copy of the dataset at path or URL `source`, without its shards; made once per node and dataset.

    The item table is rebuilt from the item shards, so only shards, ids and sequences travel; every byte is checked
    against the manifest on its way. Concurrent callers wait for the first. Returns the folder in `cache_dir`.
    Raises UserError naming the file that is missing, damaged or not the one that the manifest lists.
    """
    manifest, text = read_manifest(source)
    target = cache_dir / manifest.fingerprint[:32]
    with locked(cache_dir / f"{target.name}.lock"):
        if not target.exists():
            with whole_folder(target) as work:
                _copy(source, manifest, work)
                (work / MANIFEST).write_bytes(text)
    return target


def _copy(source: str, manifest: Manifest, work: Path) -> None:
    for name, info in manifest.files.items():
        if not name.startswith(_STREAMED):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            _fetch(join(source, name), work / name, info)
    with TableWriter(work, manifest.items, manifest.shapes) as table:
        for shard in shard_list(source, manifest, "items"):
            for block in read_shard(shard):
                table.append(block)
    verify_files(work, {name: info for name, info in manifest.files.items() if name.startswith("table/")})


class ShardCopies:
    """Copies of shards at a URL, in a folder that all processes of a node share: each shard travels once to a node.

    Only so many are kept as are asked for: whoever is done with a shard removes its copy, and who needs it after that
    fetches it again. Shards in a local folder are read where they are: the system keeps what several processes read.
    """

    def __init__(self, dataset_root: Path, source: str) -> None:
        self._folder = dataset_root.with_name(f"{dataset_root.name}.shards") if is_url(source) else None

    def here(self, shard: Shard) -> Shard:
        """The shard as a local file. Raises UserError as `open_file`, and for one that is not the listed one."""
        if self._folder is None:
            return shard
        copy = self._path(self._folder, shard)
        with locked(copy.with_suffix(".lock")):
            if not copy.exists():
                partial = copy.with_suffix(".partial")
                _fetch(shard.source, partial, shard.file)
                partial.rename(copy)
        return replace(shard, source=str(copy))

    def remove(self, shards: Iterable[Shard]) -> None:
        """Remove the copies of these shards."""
        if self._folder is not None:
            for shard in shards:
                self._path(self._folder, shard).unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, shard: Shard) -> Path:
        return folder / f"{shard.file.sha256}.tar"


def _fetch(source: str, target: Path, expected: FileInfo) -> None:
    copied = Digest()
    with open_file(source) as stream, target.open("wb") as out:
        while copied.size <= expected.bytes and (piece := stream.read(1 << 20)):
            copied.update(piece)
            out.write(piece)
    if (copied.size, copied.sha256) != (expected.bytes, expected.sha256):
        raise UserError(f"{source} does not match its size and sha256 in the manifest; copy the dataset again")
