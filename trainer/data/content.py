"""Content of items that is gathered from arrays, or made from other content."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.format.content import Content


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
