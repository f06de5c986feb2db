"""Folders that are whole or absent, and checksums of what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import UserError


class Record(BaseModel):
    """What a JSON file of ours holds: unknown or missing keys and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """The record in `path`; UserError with `remedy` (what to do) when it is absent or is not a `kind`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} cannot be read: {where}: {first['msg']}; {remedy}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path, expected: str, remedy: str) -> None:
    """Raise UserError with `remedy` unless `path` exists and its sha256 is `expected`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {remedy}")
    if sha256(path) != expected:
        raise UserError(f"{path} is damaged: its sha256 is not the one recorded when it was written; {remedy}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder to write flat files into; it becomes `out`, in place of an older one, when all went well.

    It lies beside `out`. Files are fsynced, then it is renamed: at no time does `out` hold a part of what was written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        for path in (*new.iterdir(), new):
            _fsync(path)
        replaced = out.exists()
        if replaced:
            out.rename(scratch / "old")
        try:
            new.rename(out)
        except OSError:
            if replaced:
                (scratch / "old").rename(out)
            raise
        _fsync(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
