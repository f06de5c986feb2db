"""Titles without a word that the encoder knows: their vectors are zeros, and become the mean of the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.errors import UserError
from models.options.base import ContentField
from trainer.data.mean_and_deviation import MeanAndDeviation

#: fields whose vectors come from the encoder; `visual` is a mean of theirs
_ENCODED: tuple[ContentField, ...] = ("text", "sequence")


class UnknownTitles:
    """First `add` all titles, then `fill` gives each its vectors. (The paper's code does the same for GloVe.)"""

    def __init__(self, widths: Mapping[ContentField, int]) -> None:
        self._of_known = {field: MeanAndDeviation(widths[field]) for field in _ENCODED if field in widths}
        self.count = 0

    def add(self, fields: Mapping[ContentField, NDArray[np.floating]]) -> None:
        """Take the vectors (n, ..., V) of more titles into the means, and count those whose text is unknown."""
        for field, of_known in self._of_known.items():
            vectors = fields[field].reshape(-1, fields[field].shape[-1]).astype(np.float64)
            of_known.add(vectors[vectors.any(axis=1)])
        self.count += int((~fields["text"].any(axis=-1)).sum())

    def check(self) -> None:
        """Raises UserError where every vector of a field is zeros."""
        if not all(of_known.count for of_known in self._of_known.values()):
            raise UserError("no title has a word that the encoder knows: is it an encoder for this language?")

    def fill(self, fields: Mapping[ContentField, NDArray[np.floating]]) -> dict[ContentField, NDArray[np.floating]]:
        """The fields of some titles with the mean in place of zeros; `visual` is again the mean of the sequence."""
        filled = dict(fields)
        for field, of_known in self._of_known.items():
            array = fields[field]
            known = array.any(axis=-1, keepdims=True)
            filled[field] = np.where(known, array, of_known.mean_V.astype(array.dtype))
        if "sequence" in self._of_known:
            filled["visual"] = _mean_over_steps(filled["sequence"], fields["visual"].dtype)
        return filled


def _mean_over_steps(sequence: NDArray[np.floating], dtype: DTypeLike) -> NDArray[np.floating]:
    return np.asarray(sequence.astype(np.float32).mean(axis=1).astype(dtype))
