"""A dataset at a path or URL, streamed once per node into a local folder that can be memory-mapped."""

from __future__ import annotations

from pathlib import Path

from models.errors import UserError
from retrieval.files import Digest, locked
from retrieval.folders import whole_folder
from trainer.data.format.manifest import MANIFEST, FileInfo, Manifest, read_manifest, verify_files
from trainer.data.format.shards import read_shard, shard_list
from trainer.data.format.table_file import TableWriter
from trainer.data.storage import join, open_file

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


def _fetch(source: str, target: Path, expected: FileInfo) -> None:
    copied = Digest()
    with open_file(source) as stream, target.open("wb") as out:
        while copied.size <= expected.bytes and (piece := stream.read(1 << 20)):
            copied.update(piece)
            out.write(piece)
    if (copied.size, copied.sha256) != (expected.bytes, expected.sha256):
        raise UserError(f"{source} does not match its size and sha256 in the manifest; copy the dataset again")
