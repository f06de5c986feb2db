"""Content of items from embedded titles, and how content is gathered from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from trainer.data.format.writer import Content
from trainer.extract.titles.minilm import ENCODER, embed, segments


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
    content: dict[ContentField, Content] = {"text": from_rows(vectors, text, "title", ENCODER)}
    if states is not None:
        content["text_layers"] = from_rows(states, text, "title layers", ENCODER)
    if n_segments:
        sequence = np.full((len(clean), n_segments), -1, np.int64)
        sequence[present] = index[shown:].reshape(shown, n_segments)
        content["sequence"] = from_rows(vectors, sequence, "segments", ENCODER)
        content["visual"] = mean_of(content["sequence"])
        if states is not None:
            content["visual_layers"] = mean_of(from_rows(states, sequence, "segments layers", ENCODER))
    return content


def mean_of(sequence: Content) -> Content:
    """The mean over the steps of a content sequence."""

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, present = sequence.read(start, stop)
        return values.astype(np.float32, copy=False).mean(axis=1), present

    return Content(sequence.shape[1:], read, f"{sequence.kind} mean", sequence.encoder)


def from_rows(array: NDArray[Any], rows: NDArray[np.int64], kind: str, encoder: str) -> Content:
    """Content gathered from `array`: item i has entries array[rows[i]], or none where rows[i] is -1."""

    def read(start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        wanted = rows[start:stop]
        present = np.asarray((wanted >= 0).reshape(stop - start, -1).all(axis=1))
        return np.asarray(array[np.maximum(wanted, 0)]), present

    return Content((*rows.shape[1:], *array.shape[1:]), read, kind, encoder)
