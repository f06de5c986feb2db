"""Read our JSON files strictly, and check files against the checksums recorded when they were written."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import UserError
from retrieval.files import digest_file


class Record(BaseModel):
    """Base class for the content of our JSON files; refuses unknown keys, missing keys and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """The record in `path`. Raises UserError with `remedy` (what to do) if the file is absent or not a valid `kind`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} cannot be read: {where}: {first['msg']}; {remedy}") from None


def check_file(path: Path, expected: str, remedy: str) -> None:
    """Raise UserError with `remedy` unless `path` exists and its SHA-256 is `expected`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {remedy}")
    if digest_file(path).sha256 != expected:
        raise UserError(f"{path} is damaged: its sha256 is not the one recorded when it was written; {remedy}")
