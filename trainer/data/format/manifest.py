"""What a prepared dataset says about itself: `manifest.json`, its checksums, and their verification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import UserError
from models.options.base import ContentField
from retrieval.files import digest, digest_file
from trainer.data.storage import join, open_file

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
#: of a manifest that are read; one of 100,000 shards has 15 MB, and parsed it may take ten times that
MAX_BYTES = 16 << 20
CoreOn = Literal["both", "users", "items", "none"]


class Frozen(BaseModel):
    """A part of a manifest: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Core(Frozen):
    """The iterated k-core filter that was applied: at least `k` interactions on the sides named by `on`."""

    k: int = Field(ge=0)
    on: CoreOn


class ContentInfo(Frozen):
    """One content field. shape: of one item's entry; mean, std: (shape[-1],), over items with training occurrences, for
    systems that standardise it (the table does not)."""

    shape: tuple[int, ...]
    kind: str
    encoder: str
    missing: int = Field(ge=0)
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Statistics(Frozen):
    """Table 1 of the paper. sparsity: the share of the users * items pairs without an interaction (where nobody watches
    an item twice, 1 - interactions / (users * items), as the paper has it)."""

    users: int
    items: int
    interactions: int
    average_length: float
    sparsity: float


class SplitInfo(Frozen):
    """cold_targets: users whose target of this split never occurs at a training position."""

    cold_targets: int


class Splits(Frozen):
    validation: SplitInfo
    test: SplitInfo


class ShardInfo(Frozen):
    """A WebDataset shard: `rows` item or training rows in `blocks` samples, in row order over the shards of a kind."""

    kind: Literal["items", "rows"]
    blocks: int = Field(ge=0)
    rows: int = Field(ge=0)


class FileInfo(Frozen):
    """Size and checksum of one file of the dataset."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Provenance(Frozen):
    """What made the dataset. sources: file name -> sha256."""

    command: str
    sources: dict[str, str]
    version: str
    git_revision: str | None
    time: str


class Listed(Frozen):
    """A manifest that lists its files with their checksums, and which of them are shards."""

    if TYPE_CHECKING:  # each manifest declares them itself, as its last fields: the file is easier to read so
        shards: dict[str, ShardInfo]
        files: dict[str, FileInfo]

    def shard_names(self, kind: Literal["items", "rows"]) -> list[str]:
        """Paths of the shards of one kind, in row order."""
        return sorted(name for name, shard in self.shards.items() if shard.kind == kind)

    def dumps(self) -> str:
        """The text of the manifest."""
        return self.model_dump_json(indent=1) + "\n"


_Listed = TypeVar("_Listed", bound=Listed)


class Manifest(Listed):
    """The whole of `manifest.json` (docs/dataset-format.md)."""

    schema_version: int
    users: int = Field(ge=1)
    items: int = Field(ge=1)
    interactions: int = Field(ge=1)
    train_rows: int = Field(ge=0)
    max_length: int = Field(ge=1)
    core: Core
    content: dict[ContentField, ContentInfo]
    behaviours: tuple[str, ...]
    dropped: dict[str, int]
    statistics: Statistics
    splits: Splits
    shards: dict[str, ShardInfo]
    files: dict[str, FileInfo]
    provenance: Provenance
    truth: dict[str, Any] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one item's entry, by content field."""
        return {field: info.shape for field, info in self.content.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 over the checksums of every file: equal for equal data, whenever and wherever it was prepared."""
        lines = sorted(f"{name} {info.sha256}" for name, info in self.files.items())
        return digest("\n".join(lines))

    @property
    def whole_fingerprint(self) -> str:
        """sha256 over all that the manifest says, but for when, where and by which command the data was prepared."""
        content = self.model_dump(mode="json", exclude={"provenance"}, exclude_defaults=True)
        return digest(json.dumps(content, sort_keys=True))


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """The manifest in `text`; `where` names it in errors.

    Raises UserError: not JSON, another schema version, a missing, unknown or malformed key, a path out of the folder.
    """
    return parse_as(Manifest, SCHEMA_VERSION, text, where, "prepare the dataset again")


def parse_as(model: type[_Listed], schema_version: int, text: str | bytes, where: str, again: str) -> _Listed:
    """The manifest of type `model` in `text`; `again` says in errors what makes a new one."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}); {again}") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != schema_version:
        raise UserError(f"{where} has schema version {version!r}, this program reads {schema_version}; {again}")
    try:
        manifest = model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: key {key!r}: {first['msg']}; {again}") from None
    for name in (*manifest.files, *manifest.shards):
        if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise UserError(f"{where} names the file {name!r}, which lies outside the folder; do not use it")
    for name in manifest.shards:
        if name not in manifest.files:
            raise UserError(f"{where} has no checksum for shard {name!r}; {again}")
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in `folder`. Raises UserError as `parse_manifest`, and where there is none."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES)
        return parse_manifest(text, str(path))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); is {folder} a dataset made by `mealrec prepare`?"
        ) from None


def read_manifest(source: str) -> tuple[Manifest, bytes]:
    """The manifest of the dataset at a path or URL, and the bytes of its file. Raises UserError as `parse_manifest`,
    and where there is none.
    """
    where = join(source, MANIFEST)
    with open_file(where) as stream:
        text = stream.read(MAX_BYTES)
    return parse_manifest(text, where), text


def file_info(path: Path) -> FileInfo:
    """Size and sha256 of a file, read in pieces."""
    found = digest_file(path)
    return FileInfo(bytes=found.size, sha256=found.sha256)


def verify_files(folder: Path, files: Mapping[str, FileInfo]) -> None:
    """Check presence, size and sha256 of `files` (relative to `folder`); UserError names the first that differs."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, the manifest lists it; prepare or copy the dataset again")
        if path.stat().st_size != expected.bytes:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {expected.bytes}: "
                "truncated or overwritten; prepare or copy the dataset again"
            )
        if file_info(path) != expected:
            raise UserError(f"{path} does not match its sha256 in the manifest; prepare or copy the dataset again")
