"""Raw item content for a dataset: arrays made elsewhere, and embedded titles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contract import ContentField
from models.errors import UserError
from trainer.data.text import ENCODER, embed, segments
from trainer.data.writer import Content

_CHECK_BYTES = 32 << 20
#: file -> content field, dimensions, what it is
_FILES: dict[str, tuple[ContentField, int, str]] = {
    "frames.npy": ("sequence", 3, "frames"),
    "video.npy": ("visual", 2, "video"),
    "text.npy": ("text", 2, "title"),
    "video_layers.npy": ("visual_layers", 3, "video layers"),
    "text_layers.npy": ("text_layers", 3, "title layers"),
}


def feature_content(
    folder: Path, item_ids: Sequence[str]
) -> tuple[dict[ContentField, Content], dict[str, int], list[Path]]:
    """Content from `folder`: ids.txt (one id a line) or ids.json (a list), and any of frames.npy (I, K, V),
    video.npy (I, V), text.npy (I, H), video_layers.npy (I, S, V), text_layers.npy (I, S', H). Without a video, visual
    is the mean of the frames.

    Returns content by field, what was not used (reason -> count), and the files read.
    Raises UserError: files missing, ids and arrays of different lengths, NaN or infinity (file and first bad row).
    """
    ids, id_file = _read_ids(folder)
    where = {item: row for row, item in enumerate(ids)}
    if len(where) < len(ids):
        raise UserError(f"{id_file} holds {len(ids) - len(where)} ids twice; keep one row per item")
    rows = np.fromiter((where.get(item, -1) for item in item_ids), np.int64, len(item_ids))
    content: dict[ContentField, Content] = {}
    files = [id_file]
    for name, (field, dimensions, kind) in _FILES.items():
        path = folder / name
        if path.exists():
            files.append(path)
            array = _checked(path, dimensions, len(ids), id_file)
            content[field] = _from_rows(array, rows, kind, f"made elsewhere: {name}")
    if not content:
        raise UserError(f"{folder} has none of {', '.join(_FILES)}; put the arrays there")
    if "sequence" in content and "visual" not in content:
        content["visual"] = mean_of(content["sequence"])
    unused = len(ids) - int((rows >= 0).sum())
    return content, {"feature rows of items not in the dataset": unused}, files


def title_content(
    titles: Sequence[str | None], n_segments: int | None, layers: bool = False
) -> dict[ContentField, Content]:
    """Text content of titles (None or blank: missing), and with `n_segments` a sequence of segments and their mean.

    layers: also the encoder's layer states, of the titles, and of the stand-in for video as the mean over segments.
    """
    clean = [title.strip() if title else "" for title in titles]
    present = np.asarray([bool(title) for title in clean])
    if not present.any():
        raise UserError("no item has a title to embed; give the titles (--titles) or leave --text and --segments out")
    windows = [segments(title, n_segments) for title in clean] if n_segments else []
    texts = [title for title in clean if title] + [
        w for title, ws in zip(clean, windows, strict=False) if title for w in ws
    ]
    vectors, states, index = embed(texts, layers)
    shown = int(present.sum())
    text = np.full(len(clean), -1, np.int64)
    text[present] = index[:shown]
    content: dict[ContentField, Content] = {"text": _from_rows(vectors, text, "title", ENCODER)}
    if states is not None:
        content["text_layers"] = _from_rows(states, text, "title layers", ENCODER)
    if n_segments:
        sequence = np.full((len(clean), n_segments), -1, np.int64)
        sequence[present] = index[shown:].reshape(shown, n_segments)
        content["sequence"] = _from_rows(vectors, sequence, "segments", ENCODER)
        content["visual"] = mean_of(content["sequence"])
        if states is not None:
            content["visual_layers"] = mean_of(_from_rows(states, sequence, "segments layers", ENCODER))
    return content


def mean_of(sequence: Content) -> Content:
    """The mean over the steps of a content sequence."""

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, present = sequence.read(start, stop)
        return values.astype(np.float32, copy=False).mean(axis=1), present

    return Content(sequence.shape[1:], read, f"{sequence.kind} mean", sequence.encoder)


def _from_rows(array: NDArray[Any], rows: NDArray[np.int64], kind: str, encoder: str) -> Content:
    """Content gathered from `array`: item i has entries array[rows[i]], or none where rows[i] is -1."""

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        wanted = rows[start:stop]
        present = np.asarray((wanted >= 0).reshape(stop - start, -1).all(axis=1))
        return np.asarray(array[np.maximum(wanted, 0)]), present

    return Content((*rows.shape[1:], *array.shape[1:]), read, kind, encoder)


def _read_ids(folder: Path) -> tuple[list[str], Path]:
    text, listed = folder / "ids.txt", folder / "ids.json"
    path = listed if listed.exists() else text
    try:
        raw = path.read_text(encoding="utf-8")
        ids = json.loads(raw) if path is listed else [line.strip() for line in raw.splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); --features needs ids.txt or ids.json") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); one id a line, or a JSON list of ids") from None
    if not isinstance(ids, list) or not all(isinstance(item, str | int) and item != "" for item in ids):
        raise UserError(f"{path} has an empty line or an entry that is not an id; one id per row of the arrays")
    return [str(item) for item in ids], path


def _checked(path: Path, dimensions: int, length: int, id_file: Path) -> NDArray[Any]:
    """The array at `path`, memory-mapped, checked to be finite numbers of the right shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy array ({error})") from None
    if array.ndim != dimensions or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape[1:]:
        raise UserError(f"{path} is {array.dtype} {array.shape}; expected {dimensions} dimensions of float numbers")
    if len(array) != length:
        raise UserError(f"{path} has {len(array)} rows, {id_file.name} has {length} ids; they must agree")
    step = max(1, _CHECK_BYTES // (array.dtype.itemsize * int(np.prod(array.shape[1:]))))
    for start in range(0, length, step):
        finite = np.isfinite(array[start : start + step]).reshape(-1, int(np.prod(array.shape[1:]))).all(axis=1)
        if not finite.all():
            raise UserError(f"{path}, row {start + int(np.argmin(finite))} (from 0) holds NaN or infinity; mend it")
    return np.asarray(array)
