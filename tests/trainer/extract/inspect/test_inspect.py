"""`mealrec inspect`: the right frames, times and neighbours, with any text in titles, and with anything missing."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from models.errors import UserError
from models.options.base import ContentField
from tests.helpers.clips import number_clip, read_number
from tests.helpers.extraction_job import items_of
from tests.helpers.inspected import AT, SHOWN, clips, inspected, made, named, pixels, title, video
from tests.helpers.paths import ROOT
from trainer.cli import main
from trainer.data.features import Features, open_features
from trainer.extract.inspect import pictures
from trainer.extract.inspect.neighbours import nearest
from trainer.extract.titles.job import TitleJob

HOSTILE = "</title></style><script>alert('1')</script><b onclick=x> \"quoted\" & &lt; שלום \u202e🐈‍⬛ \x00\x07\x85."
READABLE = HOSTILE.replace("\x00", "�").replace("\x07", "�").replace("\x85", "�")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the user is told."""
    assert main(["inspect", *words]) == 2
    return capsys.readouterr().err


def test_frames_times_titles_and_pictures_of_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = video(tmp_path / "video", clips(tmp_path / "clips", 4))
    words = title(tmp_path / "title", named(4))
    page = inspected(tmp_path, "i1", features, words, neighbours=2)
    assert f"written to {tmp_path}/pages/page.html" in capsys.readouterr().out
    assert page.title == "Name 1 (i1)"
    assert "Name 1" in page.text[""]
    frames = page.pictures["Sampled frames"]
    assert [read_number(pixels(image)) for image in frames] == [100 + number for number in SHOWN]
    assert pixels(frames[0]).shape == (180, 320, 3)
    assert re.findall(r"\d+\.\d\d s", page.text["Sampled frames"]) == [f"{at:.2f} s" for at in AT]
    assert [image["alt"] for image in frames] == [f"frame {k} of Name 1, at {at:.2f} s" for k, at in enumerate(AT, 1)]
    near = nearest(open_features(features), 2, 2)["visual"]
    numbers = [read_number(pixels(image)) for image in page.pictures["Nearest by video"]]
    assert numbers == [100 * (row - 1) + SHOWN[2] for row, _ in near]
    for name in ("Nearest by video", "Nearest by title"):
        found = re.findall(r"Name (\d)item i(\d)", page.text[name])
        assert len(found) == 2
        assert all(of_title == of_item != "1" for of_title, of_item in found)
    shown = re.findall(r"similarity (.+?)Name", page.text["Nearest by video"])
    assert [float(number.replace("\N{MINUS SIGN}", "-")) for number in shown] == pytest.approx(
        [x for _, x in near], abs=6e-4
    )
    facts = page.text[f"Features in {features}"]
    assert "sequence: frames, 5 x 6; visual: video, 6" in facts
    assert f"row2 of 4 (0 items failed)video{tmp_path}/clips/1.mp4" in facts


def brute_force(vectors: NDArray[Any], row: int) -> list[tuple[int, float]]:
    """All other rows and their similarity by definition, best first; equal ones in the order of rows."""
    x = vectors.astype(np.float16).astype(np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    own = x[row - 1]
    scores = [
        (round(float(np.dot(own, each) / np.linalg.norm(own) / (np.linalg.norm(each) or 1)), 9), -number)
        for number, each in enumerate(x, 1)
    ]
    return [(-number, score) for score, number in sorted(scores, reverse=True) if -number != row]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Features, dict[ContentField, NDArray[Any]]]:
    """Features in three blocks, with equal vectors in different blocks, and with constant or very large dimensions."""
    rng = np.random.default_rng(3)
    text = rng.standard_normal((1100, 8)) * [1, 50, 1, 1, 0, 0, 1, 1] + [0, 0, 900, 0, 3, 0, 0, 0]
    text[[3, 515, 516, 1099]] = text[40]
    arrays: dict[ContentField, NDArray[Any]] = {
        "text": text,
        "visual": rng.random((1100, 5)) < [0.1, 0.2, 0.3, 0.4, 0.5],
    }
    out = tmp_path_factory.mktemp("many") / "out"
    features = open_features(made(out, TitleJob("e"), {str(k): v for k, v in arrays.items()}, items_of(["x"] * 1100)))
    assert [shard.blocks for shard in features.manifest.shards.values()] == [3]
    return features, arrays


@pytest.mark.parametrize(("row", "k"), [(41, 6), (1100, 4), (1, 20), (513, 2000), (700, 1)])
def test_neighbours_are_those_of_brute_force(
    many: tuple[Features, dict[ContentField, NDArray[Any]]], row: int, k: int
) -> None:
    features, arrays = many
    found = nearest(features, row, k)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = brute_force(array, row)[:k]
        assert [near.row for near in found[name]] == [number for number, _ in expected]
        assert [near.similarity for near in found[name]] == pytest.approx([score for _, score in expected], abs=1e-8)


def test_equal_vectors_come_in_order_without_the_item_itself(
    many: tuple[Features, dict[ContentField, NDArray[Any]]],
) -> None:
    near = nearest(many[0], 516, 5)["text"]
    assert [row for row, _ in near][:4] == [4, 41, 517, 1100]
    assert [score for _, score in near][:4] == pytest.approx([1, 1, 1, 1])
    assert near[4].similarity < 0.999


def test_an_item_at_the_mean_is_like_nothing(tmp_path: Path) -> None:
    vectors = np.array([[1, 1], [2, 2], [3, 3]])
    features = open_features(made(tmp_path / "out", TitleJob("e"), {"text": vectors}, named(3)))
    assert nearest(features, 1, 5)["text"] == [(2, 0.0), (3, pytest.approx(-1))]
    assert nearest(features, 2, 5)["text"] == [(1, 0.0), (3, 0.0)]


def test_shards_that_hold_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(title(tmp_path / "title", named(3)))
    manifest = root / "features.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"rows": 3', '"rows": 2'))
    with pytest.raises(UserError, match="the shards hold 2 items, the manifest says 3"):
        nearest(open_features(str(root)), 1, 2)
    manifest.write_text(whole)
    (root / "shards" / "items-00000.tar").write_bytes(b"")
    out = tmp_path / "page.html"
    assert "00000.tar is trunc" in refused(capsys, "--features", str(root), "--item", "i1", "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize("column", ["item", "title", "source"])
@pytest.mark.parametrize("row", [0, 2])
def test_hostile_words_stay_words(tmp_path: Path, column: str, row: int) -> None:
    words = named(3).with_columns(named(3)[column].scatter(row, HOSTILE))
    page = inspected(tmp_path, words["item"][0], title(tmp_path / "title", words))
    if column != "source":
        assert READABLE in (page.text["Nearest by title"] if row else page.text[""])
        assert row or READABLE in page.title
    elif row == 0:
        assert READABLE in page.text[f"Features in {tmp_path}/title"]


def test_hostile_titles_of_pictures_stay_words(tmp_path: Path) -> None:
    features = video(tmp_path / "video", clips(tmp_path / "clips", 2))
    words = title(tmp_path / "title", named(2).with_columns(title=pl.Series([HOSTILE, HOSTILE])))
    page = inspected(tmp_path, "i0", features, words)
    assert page.pictures["Sampled frames"][1]["alt"] == f"frame 2 of {READABLE}, at 1.40 s"
    assert [image["alt"] for image in page.pictures["Nearest by video"]] == [f"middle frame of {READABLE}"]


def test_frames_are_sampled_as_they_were_for_the_features(tmp_path: Path) -> None:
    features = video(tmp_path / "video", clips(tmp_path / "clips", 1))
    manifest = tmp_path / "video" / "features.json"
    manifest.write_text(manifest.read_text().replace('"fps": 1.0', '"fps": 2.0'))
    page = inspected(tmp_path, "i0", features, features)
    # at 1.5, 2, 2.5, 3 and 3.5 s, with a picture every 0.2 s
    assert [read_number(pixels(image)) for image in page.pictures["Sampled frames"]] == [7, 10, 12, 15, 17]
    assert page.text["Sampled frames"].count("2.00 s") == 1
    assert [tag for tag, _ in page.tags].count("h2") == 3, "a folder that is given twice is shown once"


def test_videos_that_are_gone_changed_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = clips(tmp_path / "clips", 3)
    monkeypatch.setattr(pictures, "_THUMBNAIL_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        files[1] = f"http://127.0.0.1:{silent.getsockname()[1]}/1.mp4"
        features = video(tmp_path / "video", files)
        Path(files[0]).unlink()
        number_clip(Path(files[2]), frames=50, fps=5, first=500)
        gone = inspected(tmp_path, "i0", features, neighbours=1)
        assert "cannot be shown: no such file" in gone.text["Sampled frames"]
        assert "Sampled at 0.40 s, 1.40 s, 2.40 s, 3.40 s, 4.40 s" in gone.text["Sampled frames"]
        assert gone.pictures["Sampled frames"] == []
        started = time.monotonic()
        changed = inspected(tmp_path, "i2", features, fetch=files[1])
        assert time.monotonic() - started < 60  # the server never answers
    assert "has changed since the features were made of its frames at 0.40, 1.40," in changed.text["Sampled frames"]
    assert "3.00 s4.00 s5.00 s6.00 s7.00 s" in changed.text["Sampled frames"]
    assert read_number(pixels(changed.pictures["Sampled frames"][0])) == 515
    assert "no picture: took longer than 0.3 s" in changed.text["Nearest by video"]
    assert "no picture: no such file" in changed.text["Nearest by video"]


def test_an_address_in_the_features_is_fetched_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be that of a service on this machine, or in its network."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = f"http://127.0.0.1:{service.getsockname()[1]}"
        features = video(tmp_path / "video", [f"{address}/admin?delete=all", f"{address}/1.mp4", "s3://private/2.mp4"])
        for item in ("i0", "i2"):
            page = inspected(tmp_path, item, features, fetch=f"{address}/videos")
            assert "which is fetched only if --fetch names that address" in page.text["Sampled frames"]
            assert page.text["Nearest by video"].count("is fetched only if --fetch") == 2
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.accept()  # nobody has called
    out = ["--features", features, "--item", "i0", "--out", str(tmp_path / "page.html")]
    assert "--fetch videos: give a URL" in refused(capsys, *out, "--fetch", "videos")
    assert "only file, http, https, s3, gs URLs" in refused(capsys, *out, "--fetch", "ftp://host")


@pytest.mark.parametrize(
    ("source", "address", "allowed"),
    [
        ("https://host/a/1.mp4", "https://host/a", True),
        ("https://host/a/1.mp4", "https://host/a/", True),
        ("https://host/a/1.mp4", "https://host", True),
        ("https://host/a/1.mp4", "https://host/a/1.mp4", True),
        ("https://host/ab/1.mp4", "https://host/a", False),
        ("https://host.evil/a/1.mp4", "https://host", False),
        ("https://host:8080/a/1.mp4", "https://host", False),
        ("https://host@evil/a/1.mp4", "https://host", False),
        ("http://host/a/1.mp4", "https://host", False),
        ("https://host/a/../b/1.mp4", "https://host/a", False),
        ("https://host/a/%2e%2e/b/1.mp4", "https://host/a", False),
        ("s3://bucket/a/1.mp4", "s3://bucket/a", True),
        ("s3://bucket2/1.mp4", "s3://bucket", False),
        ("/local/1.mp4", "https://host", True),
        ("file:///local/1.mp4", "https://host", True),
    ],
)
def test_an_address_stands_for_itself_and_what_is_below_it(source: str, address: str, allowed: bool) -> None:
    assert pictures.may_be_read(source, [address]) == allowed


def test_an_item_of_one_folder_alone(tmp_path: Path) -> None:
    features = video(tmp_path / "video", clips(tmp_path / "clips", 2), failed={0: "no <video> stream"})
    words = title(tmp_path / "title", named(3))
    failed = inspected(tmp_path, "i0", features, words)
    assert f"Not in {features}: failed: no <video> stream" in failed.text[""]
    assert list(failed.text) == ["", "Nearest by title", f"Features in {words}"]
    other = inspected(tmp_path, "i2", features, words)
    assert f"Not in {features}: not one of the 1 items" in other.text[""]
    (tmp_path / "video" / "failed.csv").unlink()
    assert "why is not known: cannot open" in inspected(tmp_path, "i0", features, words).text[""]
    alone = inspected(tmp_path, "i1", features)
    assert "There is no other item" in alone.text["Nearest by video"]
    assert alone.title == "i1"
    assert "no title" in alone.text[""]


def test_items_that_are_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = title(tmp_path / "title", named(30), failed={7: "no title"})
    out = ["--out", str(tmp_path / "page.html")]
    told = refused(capsys, "--features", words, "--item", "i1l", *out)
    assert re.search(r"no features of item 'i1l': .*title: not one of the 29 items; the nearest ids are 'i1\d?'", told)
    assert "an id is 'i0'" in refused(capsys, "--features", words, "--item", "zebra", *out)
    told = refused(capsys, "--features", words, "--item", "i7", *out)
    assert told == f"error: no features of item 'i7': {words}: failed: no title\n"
    assert "an id is" in refused(capsys, "--features", words, "--item", "\udcff", *out)


def test_folders_and_words_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = ["--item", "i0", "--out", str(tmp_path / "page.html")]
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    (arrays / "ids.txt").write_text("i0\n")
    assert "not arrays made elsewhere" in refused(capsys, "--features", str(arrays), *item)
    (arrays / "unfinished").mkdir()
    assert "has not ended" in refused(capsys, "--features", str(arrays), *item)
    features = ["--features", video(tmp_path / "video", clips(tmp_path / "clips", 1))]
    assert "--neighbours 0: give" in refused(capsys, *features, *item, "--neighbours", "0")
    assert "is a folder" in refused(capsys, *features, "--item", "i0", "--out", str(tmp_path))
    assert "cannot write" in refused(capsys, *features, "--item", "i0", "--out", str(arrays / "ids.txt" / "page"))
    manifest = tmp_path / "video" / "features.json"
    content = json.loads(manifest.read_text())
    del content["settings"]["fps"]
    manifest.write_text(json.dumps(content))
    assert "frames per second" in refused(capsys, *features, *item)


def test_titles_need_no_decoder(tmp_path: Path) -> None:
    features = video(tmp_path / "video", ["/nowhere.mp4"])
    words = title(tmp_path / "title", named(2))
    code = (
        "import sys; sys.modules['av'] = None; from trainer.cli import main\n"
        f"titles = main(['inspect', '--features', {words!r}, '--item', 'i0', '--out', {str(tmp_path / 'p')!r}])\n"
        f"videos = main(['inspect', '--features', {features!r}, '--item', 'i0', '--out', {str(tmp_path / 'q')!r}])\n"
        "assert (titles, videos) == (0, 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PyAV and Pillow (import of av halted" in done.stderr
    assert "pip install 'mealrec[video]'" in done.stderr


def test_titles_come_from_the_first_folder_that_has_one(tmp_path: Path) -> None:
    first = named(2).with_columns(title=pl.Series([None, " "], dtype=pl.String))
    last = named(2).with_columns(title=pl.lit("Another name"))
    roots = [title(tmp_path / name, items) for name, items in (("a", first), ("b", named(2)), ("c", last))]
    page = inspected(tmp_path, "i0", *roots)
    assert page.title == "Name 0 (i0)"
    assert page.text["Nearest by title"].count("Name 1") == 1


@pytest.mark.parametrize("item", ["a b", "-7", "-a b"])
def test_an_id_with_blanks_or_a_dash_in_front(tmp_path: Path, item: str) -> None:
    items = named(3).with_columns(item=pl.Series(["x", item, "y"]))
    assert inspected(tmp_path, item, title(tmp_path / "title", items)).title == f"Name 1 ({item})"
