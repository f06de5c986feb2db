"""A folder of item features that `mealrec extract` made: its manifest, its items, and its vectors as arrays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.errors import UserError
from models.options.base import ContentField
from retrieval.files import digest
from trainer.data.bounded import check_parquet
from trainer.data.format.manifest import MAX_BYTES, FileInfo, Frozen, Listed, Provenance, ShardInfo, parse_as
from trainer.data.format.shards import Block, item_shards, read_shard
from trainer.data.storage import is_url, join, new_array, open_file
from trainer.progress import Progress

FEATURES_VERSION = 1
FEATURES = "features.json"
ITEMS = "items.parquet"
_AGAIN = "extract the features again"


class FeatureInfo(Frozen):
    """One content field. shape: of one item's entry; kind: what it is, in words."""

    shape: tuple[int, ...]
    kind: str


class FeatureManifest(Listed):
    """The whole of `features.json` (docs/features.md). settings: what the vectors depend on besides the encoder;
    unknown: how many items hold no word that the encoder knows, and have the mean of the others."""

    schema_version: int
    items: int = Field(ge=1)
    failed: int = Field(ge=0)
    unknown: int = Field(ge=0)
    encoder: str
    content: dict[ContentField, FeatureInfo]
    settings: dict[str, Any]
    shards: dict[str, ShardInfo]
    files: dict[str, FileInfo]
    provenance: Provenance

    @property
    def made_by(self) -> str:
        """The encoder and its frame rate; only vectors for which this is equal may be joined to one field."""
        fps = self.settings.get("fps")
        return self.encoder if fps is None else f"{self.encoder}, {fps:g} frames per second"


@dataclass(frozen=True)
class Features:
    """An extraction's result at path or URL `root`. items: row (1..n), item, title, source, times, in row order."""

    root: str
    manifest: FeatureManifest
    items: pl.DataFrame
    sha256: str


def is_extracted(root: str) -> bool:
    """Whether `root` holds what `mealrec extract` made, and not arrays made elsewhere. A URL always does."""
    return is_url(root) or (Path(root) / FEATURES).exists()


def open_features(root: str) -> Features:
    """The features at path or URL `root`. Raises UserError: missing, damaged, an extraction that has not ended."""
    if not is_url(root) and (Path(root) / "unfinished").exists() and not (Path(root) / FEATURES).exists():
        raise UserError(f"the extraction in {root} has not ended; give the same `mealrec extract` command again")
    where = join(root, FEATURES)
    with open_file(where) as stream:
        text = stream.read(MAX_BYTES)
    manifest = parse_as(FeatureManifest, FEATURES_VERSION, text, where, _AGAIN)
    items = _items(join(root, ITEMS), manifest)
    return Features(root, manifest, items, digest(text))


def blocks(features: Features) -> Iterator[Block]:
    """Item blocks in row order: rows (1..n), and per field FIELD and FIELD_present; checked against the manifest.

    Raises UserError naming the shard that is missing or damaged.
    """
    manifest = features.manifest
    shards = item_shards(features.root, manifest, {field: info.shape for field, info in manifest.content.items()})
    held = sum(shard.rows for shard in shards)
    if held != manifest.items:
        raise UserError(f"{features.root}: the shards hold {held} items, the manifest says {manifest.items}; {_AGAIN}")
    for shard in shards:
        yield from read_shard(shard)


def read_vectors(features: Features, folder: Path) -> dict[ContentField, NDArray[Any]]:
    """Vectors of the items by field, (n, ...) float16 in row order, memory-mapped from files made in `folder`.

    Raises as `blocks`.
    """
    manifest = features.manifest
    arrays: dict[ContentField, NDArray[Any]] = {
        field: new_array(folder / f"{field}.npy", (manifest.items, *info.shape), np.float16)
        for field, info in manifest.content.items()
    }
    progress = Progress(f"reading {features.root}", manifest.items)
    for block in blocks(features):
        for field, array in arrays.items():
            array[block["rows"] - 1] = block[field]
        progress.update(int(block["rows"][-1]))
    progress.close()
    return arrays


def _items(where: str, manifest: FeatureManifest) -> pl.DataFrame:
    expected = manifest.files.get(ITEMS)
    with open_file(where) as stream:
        data = stream.read(expected.bytes + 1 if expected else 0)
    if expected is None or len(data) != expected.bytes or digest(data) != expected.sha256:
        raise UserError(f"{where} does not match its size and sha256 in the manifest; {_AGAIN}")
    try:
        check_parquet(io.BytesIO(data), manifest.items)
        frame = pl.read_parquet(io.BytesIO(data)).select("row", "item", "title", "source", "times")
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where} is not a list of items ({error}); {_AGAIN}") from None
    if len(frame) != manifest.items or frame["item"].n_unique() != manifest.items:
        raise UserError(f"{where} has {len(frame)} rows, the manifest says {manifest.items} items; {_AGAIN}")
    return frame.sort("row")
