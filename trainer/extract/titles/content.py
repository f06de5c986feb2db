"""Titles to item content in this process, for `mealrec prepare --text`: the encoders of `mealrec extract titles`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster import console
from models.errors import UserError
from models.options.base import ContentField
from trainer.data.content import from_rows
from trainer.data.format.content import Content
from trainer.data.storage import new_array
from trainer.extract.pipeline.protocols import TITLE_KINDS, TitleEncoder
from trainer.extract.pipeline.unknown import UnknownTitles
from trainer.extract.titles import encoders
from trainer.progress import Progress

#: texts (titles and their windows) that are encoded before their vectors go to the disk
_TEXTS = 512
_Fields = dict[ContentField, NDArray[Any]]


@dataclass(frozen=True)
class TitleContent:
    """What makes content of titles. encoder, segments and layers: as `encoders.load` takes them."""

    encoder: str
    segments: int | None = None
    layers: bool = False

    def __call__(self, titles: Sequence[str | None], scratch: Path) -> dict[ContentField, Content]:
        """Content by field, with nothing for a title that is None or blank.

        Vectors are kept in files in `scratch`, which must stay as long as the content is read; equal titles are encoded
        once. Raises UserError: no title at all, an encoder that cannot work, no title with a word that it knows.
        """
        described = encoders.describe(self.encoder, self.layers)
        clean = [title.strip() if title else "" for title in titles]
        distinct = sorted({*clean} - {""}, key=lambda title: (len(title), title))  # little padding within a batch
        number = {title: row for row, title in enumerate(distinct)}
        if not distinct:
            raise UserError("no item has a title to embed; give the titles, or leave --text out")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encode = encoders.load(self.encoder, self.segments, self.layers, device, None)
        arrays = _encoded(distinct, encode, _TEXTS // (1 + (self.segments or 0)) or 1, scratch)
        if encoders.zero_rows_are_mean(self.encoder):
            _fill_unknown(arrays)
        rows = np.fromiter((number.get(title, -1) for title in clean), np.int64, len(clean))
        return {field: from_rows(array, rows, TITLE_KINDS[field], described) for field, array in arrays.items()}


def _encoded(titles: list[str], encode: TitleEncoder, at_once: int, scratch: Path) -> _Fields:
    """Vectors by field, (n, ...), float32, of layers float16, memory-mapped from files in `scratch`."""
    arrays: _Fields = {}
    progress = Progress("encoding titles", len(titles))
    for start in range(0, len(titles), at_once):
        for field, vectors in encode(titles[start : start + at_once]).items():
            if field not in arrays:
                dtype = np.float16 if field.endswith("_layers") else np.float32
                shape = (len(titles), *vectors.shape[1:])
                arrays[field] = new_array(scratch / f"{field}.npy", shape, dtype)
            arrays[field][start : start + len(vectors)] = vectors
        progress.update(min(start + at_once, len(titles)))
    progress.close()
    return arrays


def _fill_unknown(arrays: _Fields) -> None:
    unknown = UnknownTitles({field: array.shape[-1] for field, array in arrays.items()})
    parts = [slice(start, start + _TEXTS) for start in range(0, len(arrays["text"]), _TEXTS)]
    for part in parts:
        unknown.add({field: array[part] for field, array in arrays.items()})
    unknown.check()
    for part in parts:
        for field, filled in unknown.fill({field: array[part] for field, array in arrays.items()}).items():
            arrays[field][part] = filled
    if unknown.count:
        console.say(
            f"{unknown.count:,} titles hold no word that the encoder knows: their vectors are the mean of the others"
        )
