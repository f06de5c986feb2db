"""Vectors that are given with `prepare --features`: folders that `mealrec extract` made, or arrays made elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from trainer.data.bounded import MALFORMED, map_npy
from trainer.data.content import from_rows, mean_of
from trainer.data.features import FEATURES, is_extracted, open_features, read_vectors
from trainer.data.format.content import Content
from trainer.data.format.manifest import file_info
from trainer.data.sources.ids import with_ids
from trainer.data.sources.reading import read_delimited
from trainer.text_files import open_text

_CHECK_BYTES = 32 << 20
#: of one item: a hundred times the frames of a paper's encoder in float64
_ENTRY_BYTES = 4 << 20
#: file -> content field, dimensions, what it is
_FILES: dict[str, tuple[ContentField, int, str]] = {
    "frames.npy": ("sequence", 3, "frames"),
    "video.npy": ("visual", 2, "video"),
    "text.npy": ("text", 2, "title"),
    "video_layers.npy": ("visual_layers", 3, "video layers"),
    "text_layers.npy": ("text_layers", 3, "title layers"),
}


@dataclass(frozen=True)
class Given:
    """What the folders give to a dataset's items. unused: reason -> count. sources: file -> sha256."""

    content: dict[ContentField, Content]
    unused: dict[str, int]
    titles: dict[str, str]
    sources: dict[str, str]


@dataclass
class _Folder:
    """One folder: ids by row, and by field an array with these rows, what it is and what made it."""

    name: str
    ids: list[str]
    arrays: dict[ContentField, tuple[NDArray[Any], str, str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def feature_content(folders: Sequence[str], item_ids: Sequence[str], scratch: Path) -> Given:
    """Content from `folders`, each of which `mealrec extract` made (a path or URL), or is a folder with ids.txt (one id
    a line) or ids.json (a list) and any of frames.npy (I, K, V), video.npy (I, V), text.npy (I, H), video_layers.npy
    (I, S, V), text_layers.npy (I, S', H).

    An item in several folders has what the first of them gives. Without a video, visual is the mean of the frames.
    `scratch` must be kept as long as the content is read.
    Raises UserError: files missing or damaged, ids and arrays of different lengths, NaN or infinity (file and first
    bad row), one field from different encoders.
    """
    given = [
        _extracted(root, _subfolder(scratch, number)) if is_extracted(root) else _arrays(Path(root))
        for number, root in enumerate(folders)
    ]
    content: dict[ContentField, Content] = {}
    used = np.zeros(len(item_ids), np.bool_)
    known: set[str] = set()
    for name in dict.fromkeys(name for folder in given for name in folder.arrays):
        content[name] = _joined(name, [folder for folder in given if name in folder.arrays], item_ids)
    for folder in given:
        here = _rows(folder, item_ids) >= 0
        if not here.any():
            raise UserError(
                f"{folder.name} has none of the dataset's {len(item_ids):,} items: ids there are like "
                f"{folder.ids[0]!r}, in the dataset like {item_ids[0]!r}"
            )
        used |= here
        known.update(folder.ids)
    if "sequence" in content and "visual" not in content:
        content["visual"] = mean_of(content["sequence"])
    prefix = len(given) > 1
    return Given(
        content=content,
        unused={"feature rows of items not in the dataset": len(known) - int(used.sum())},
        titles={item: title for folder in reversed(given) for item, title in folder.titles.items()},
        sources={
            f"{folder.name}/{file}" if prefix else file: digest
            for folder in given
            for file, digest in folder.sources.items()
        },
    )


def _joined(name: ContentField, folders: list[_Folder], item_ids: Sequence[str]) -> Content:
    """One field from the folders that have it, which must agree on what it is."""
    parts = []
    first, kind, encoder = folders[0].arrays[name]
    for folder in folders:
        array, its_kind, its_encoder = folder.arrays[name]
        if (array.shape[1:], its_kind, its_encoder) != (first.shape[1:], kind, encoder):
            raise UserError(
                f"{folders[0].name} and {folder.name} both give {name!r}, but of different kinds: {kind} "
                f"{first.shape[1:]} of {encoder}, {its_kind} {array.shape[1:]} of {its_encoder}; leave one out"
            )
        parts.append(from_rows(array, _rows(folder, item_ids), kind, encoder))
    if len(parts) == 1:
        return parts[0]

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, present = parts[0].read(start, stop)
        for part in parts[1:]:
            more, there = part.read(start, stop)
            fill = there & ~present
            values[fill] = more[fill]
            present = present | there
        return values, present

    return Content(parts[0].shape, read, kind, encoder)


def _rows(folder: _Folder, item_ids: Sequence[str]) -> NDArray[np.int64]:
    """The folder's row of each item, -1 where it has none."""
    where = {item: row for row, item in enumerate(folder.ids)}
    return np.fromiter((where.get(item, -1) for item in item_ids), np.int64, len(item_ids))


def _subfolder(scratch: Path, number: int) -> Path:
    folder = scratch / str(number)
    folder.mkdir()
    return folder


def _extracted(root: str, scratch: Path) -> _Folder:
    features = open_features(root)
    manifest = features.manifest
    arrays = {
        name: (array, manifest.content[name].kind, manifest.made_by)
        for name, array in read_vectors(features, scratch).items()
    }
    titled = features.items.filter(features.items["title"].is_not_null()).select("item", "title")
    ids = features.items["item"].to_list()
    return _Folder(root, ids, arrays, dict(titled.iter_rows()), {FEATURES: features.sha256})


def _arrays(folder: Path) -> _Folder:
    ids, id_file = _read_ids(folder)
    if len(set(ids)) < len(ids):
        raise UserError(f"{id_file} repeats {len(ids) - len(set(ids))} ids; keep one row per item")
    found = _Folder(str(folder), ids, sources={id_file.name: file_info(id_file).sha256})
    for name, (field_name, dimensions, kind) in _FILES.items():
        path = folder / name
        if path.exists():
            found.arrays[field_name] = (_checked(path, dimensions, len(ids), id_file), kind, f"made elsewhere: {name}")
            found.sources[name] = file_info(path).sha256
    if not found.arrays:
        raise UserError(f"{folder} has none of {', '.join(_FILES)}; put the arrays there")
    return found


def _read_ids(folder: Path) -> tuple[list[str], Path]:
    text, listed = folder / "ids.txt", folder / "ids.json"
    path = listed if listed.exists() else text
    if not path.exists():
        raise UserError(f"{folder} has neither ids.txt nor ids.json; --features needs one of them, with the items' ids")
    if path is text:
        lines = with_ids(read_delimited(path, "\t", ["item"]), "item", path)
        if lines["_line"].to_list() != list(range(1, len(lines) + 1)):
            raise UserError(f"{path} has an empty line or an id over several lines; one id per row of the arrays")
        return lines["item"].to_list(), path
    with open_text(path) as stream:
        raw = stream.read()
    try:
        ids = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); it is a JSON list of ids") from None
    if not isinstance(ids, list) or not all(_is_id(item) for item in ids):
        raise UserError(f"{path} has an entry that is not an id; one id per row of the arrays")
    named = pl.DataFrame({"item": pl.Series([str(item) for item in ids], dtype=pl.String)})
    return with_ids(named.with_row_index("_row", 1), "item", path)["item"].to_list(), path


def _is_id(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, int) and not isinstance(value, bool)


def _checked(path: Path, dimensions: int, length: int, id_file: Path) -> NDArray[Any]:
    """The array at `path`, memory-mapped, checked to be finite numbers of the right shape."""
    try:
        array = map_npy(path, "r")
    except MALFORMED as error:
        raise UserError(f"{path} cannot be read as a .npy array ({error})") from None
    if array.ndim != dimensions or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape[1:]:
        raise UserError(f"{path} is {array.dtype} {array.shape}; expected {dimensions} dimensions of float numbers")
    if (entry := array.dtype.itemsize * math.prod(array.shape[1:])) > _ENTRY_BYTES:
        raise UserError(
            f"{path} has {entry:,} bytes for each item; at most {_ENTRY_BYTES:,} are read: is it transposed?"
        )
    if len(array) != length:
        raise UserError(f"{path} has {len(array)} rows, {id_file.name} has {length} ids; they must agree")
    step = max(1, _CHECK_BYTES // entry)
    for start in range(0, length, step):
        finite = np.isfinite(array[start : start + step]).reshape(-1, int(np.prod(array.shape[1:]))).all(axis=1)
        if not finite.all():
            raise UserError(f"{path}, row {start + int(np.argmin(finite))} (from 0) holds NaN or infinity; correct it")
    return np.asarray(array)
