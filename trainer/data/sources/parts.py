"""The files of a log: paths, patterns, folders of parts and URLs, packed with gzip or zstd or not.

A part that is packed or at a URL is on this machine, unpacked, only while it is read.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import fsspec
import pyarrow as pa

from models.errors import UserError
from retrieval.disk import told_of_disk
from trainer.data.sources.parquet import SUFFIXES as PARQUET
from trainer.data.storage import check_scheme, is_url, open_file, web_options

T = TypeVar("T")
_TEXT = (".csv", ".tsv")
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_GLOB = "*?["
_PIECE = 1 << 22


@dataclass(frozen=True)
class Part:
    """One file of a log. name: its path or URL, as messages show it."""

    name: str

    @property
    def path(self) -> Path | None:
        """The local file; None for a URL."""
        return None if is_url(self.name) else Path(self.name)

    def read(self, reader: Callable[[Path], T]) -> tuple[T, str | None]:
        """What `reader` makes of the file, unpacked and on this machine; and the SHA-256 of what was at a URL.

        Raises UserError, also those of the reader, with `name` for the file.
        """
        name = PurePosixPath(self.name.partition("?")[0] if self.path is None else Path(self.name).name)
        packed = _PACKED.get(name.suffix.lower())
        if self.path is not None and packed is None:
            return reader(self.path), None
        with tempfile.TemporaryDirectory(prefix="mealrec-") as folder, told_of_disk(Path(folder)):
            local = Path(folder) / (name.stem if packed else name.name)
            digest = _copy(self.name, local, packed)
            try:
                return reader(local), None if self.path is not None else digest
            except UserError as error:
                raise UserError(str(error).replace(str(local), self.name)) from None


def parts_of(sources: Sequence[str]) -> list[Part]:
    """The files that paths, folders, patterns and URLs name, in their order; each once, those of one source sorted.

    A path that is there is taken as it is, even if it holds * ? or [. Raises UserError: nothing is there.
    """
    found = [name for source in sources for name in (_at_url(source) if is_url(source) else _local(source))]
    return [Part(name) for name in dict.fromkeys(found)]


def _local(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
        return [str(path / name) for name in _parts(names, source)]
    if path.exists() or not any(mark in source for mark in _GLOB):
        return [source]
    # of Path.glob, a pattern may not be absolute
    found = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"no file matches {source}")
    return found


def _at_url(source: str) -> list[str]:
    check_scheme(source)
    if source.lower().startswith(("http://", "https://")):  # nothing there can be listed, and ? begins a query
        return [source]
    try:
        system, path = fsspec.core.url_to_fs(source, **web_options(source))
        if any(mark in path for mark in _GLOB) and not system.exists(path):
            found = [name for name in sorted(system.glob(path)) if system.isfile(name)]
            if not found:
                raise UserError(f"no file matches {source}")
        elif system.isdir(path):
            names = {name.removeprefix(path).lstrip("/"): name for name in system.find(path)}
            found = [names[name] for name in _parts(names, source)]
        else:
            return [source]
    except ImportError as error:
        raise UserError(f"{source}: {error}") from None
    except UserError:
        raise
    except Exception as error:  # each protocol's client has errors of its own
        raise UserError(f"cannot list {source} ({type(error).__name__}: {error}); is it there and readable?") from None
    return [system.unstrip_protocol(name) for name in found]


def _parts(names: Iterable[str], folder: str) -> list[str]:
    """Of the files in a folder those that are parts; hidden ones and those with "_" in front (of Spark) are none."""
    there = sorted(names)
    shown = [name for name in there if not any(step[0] in "._" for step in name.split("/"))]
    parts = [name for name in shown if _kind(name) in (*PARQUET, *_TEXT)]
    if not parts:
        example = f"such as {there[0]}" if there else "it holds no files"
        raise UserError(
            f"{folder} is a folder without parts of a log ({example}); cannot read it: give files that end in "
            f"{', '.join((*PARQUET, *_TEXT))}, or in one of these and {' or '.join(_PACKED)}"
        )
    return parts


def _kind(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in _PACKED else path.suffix


def _copy(source: str, to: Path, packed: str | None) -> str:
    """Copy and unpack a file piece by piece; returns the SHA-256 of what was read."""
    try:
        with open_file(source) as stream, to.open("wb") as out:
            reader = _Hashed(stream)
            unpacked = pa.CompressedInputStream(pa.PythonFile(reader, "r"), packed) if packed else reader
            shutil.copyfileobj(unpacked, out, _PIECE)
            return reader.sha256.hexdigest()
    except pa.ArrowInvalid as error:
        raise UserError(f"{source} is no whole {packed} file ({error})") from None
    except OSError as error:
        if packed is None or error.errno is not None:
            raise
        raise UserError(f"{source} is no whole {packed} file ({error})") from None


class _Hashed:
    """A stream that is read from beginning to end, and the SHA-256 of what was read."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self.sha256.update(piece)
        return piece

    def close(self) -> None:
        """Left to who opened the stream."""
