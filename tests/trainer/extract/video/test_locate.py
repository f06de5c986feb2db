"""Lists of items, and how the video of each item is found."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import polars as pl
import pytest

from models.errors import UserError
from trainer.data.sources.items import read_items
from trainer.extract.video.locate import locate


def table(ids: list[str], videos: list[str | None] | None = None) -> pl.DataFrame:
    columns = {"item": ids, "title": [None] * len(ids), "video": videos or [None] * len(ids)}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.txt", "7\n x,y \n\n8\n", [("7", None, None), ("x,y", None, None), ("8", None, None)]),
        ("a.csv", "item\n7\n8\n", [("7", None, None), ("8", None, None)]),
        ("a.csv", 'title,item\n"a, b",7\n,8\n', [("7", "a, b", None), ("8", None, None)]),
        ("a.tsv", "item\tvideo\n7\ta/b.mp4\n", [("7", None, "a/b.mp4")]),
        ("a.csv", '1,"no, header"\n2,two\n', [("1", "no, header", None), ("2", "two", None)]),
        (
            "failed.csv",
            "item,source,reason\n7,a.mp4,empty file\n8,,no file\n",
            [("7", None, "a.mp4"), ("8", None, None)],
        ),
        ("ids.csv", "7\n8\n", [("7", None, None), ("8", None, None)]),
    ],
)
def test_lists_of_items(tmp_path: Path, name: str, text: str, rows: list[tuple[str | None, ...]]) -> None:
    (tmp_path / name).write_text(text)
    frame = read_items(tmp_path / name)
    assert (frame.columns, frame.rows()) == (["item", "title", "video"], rows)


def test_items_of_a_prepared_dataset(tmp_path: Path) -> None:
    frame = pl.DataFrame({"row": [1, 2], "item": [30, 40], "title": ["a", None]})
    frame.write_parquet(tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet").rows() == [("30", "a", None), ("40", None, None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"7\n8\n7\n", r"a\.txt, line 1: item '7' is there twice"),
        ("a.csv", b"item,title\n,x\n", r"a\.csv, line 2: item is missing"),
        ("a.csv", b"item,title\n", "has no rows"),
        ("a.csv", b"id,name,price\n1,2,3\n", "has no column 'item'"),
        ("a.csv", b"item_id,video\n1,a.mp4\n", "has no column 'item'; did you mean 'item_id'"),
        ("a.parquet", b"no", "cannot be read as Parquet"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"", "is empty"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_items(tmp_path / name)


@pytest.mark.parametrize("columns", [{"id": [1]}, {"item": [[1]]}, {"item": pl.Series([], dtype=pl.Int64)}])
def test_parquet_that_is_refused(tmp_path: Path, columns: dict[str, object]) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet"):
        read_items(tmp_path / "a.parquet")


def test_files_are_found_at_any_depth_and_the_best_is_taken(tmp_path: Path) -> None:
    for name in ("1.mp4", "x/y/2.WEBM", "3.mkv", "3.mov", "4.txt", "5", "6.tar.mp4", "deep/7.mp4", "7.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = locate(table(["1", "2", "3", "4", "5", "6", "6.tar", "7"]), str(tmp_path))
    assert [Path(f).relative_to(tmp_path).as_posix() if f else "" for f in found] == [
        "1.mp4", "x/y/2.WEBM", "3.mov", "", "", "", "6.tar.mp4", "7.mp4",
    ]  # fmt: skip


def test_videos_that_the_table_names(tmp_path: Path) -> None:
    (tmp_path / "2.mp4").touch()
    named = ["sub/one.mp4", None, "https://host.invalid/3.mp4", "/abs/4.mp4"]
    assert locate(table(["1", "2", "3", "4"], named), str(tmp_path)) == [
        str(tmp_path / "sub/one.mp4"), str(tmp_path / "2.mp4"), "https://host.invalid/3.mp4", "/abs/4.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("root", "message"),
    [("ftp://x/y", "only file, http"), ("s3://a::file://b", "only file, http"), ("nowhere", "is not a folder")],
)
def test_places_that_are_refused(root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(table(["1"]), root)
    with pytest.raises(UserError, match="only file, http"):
        locate(table(["1"], ["pipe://rm"]), ".")


def test_no_item_has_a_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 2 items \(such as '1'\) .* there are no files"):
        locate(table(["1", "2"]), str(tmp_path))
    (tmp_path / "video_1.mp4").touch()
    with pytest.raises(UserError, match=r"a file there is .*video_1\.mp4"):
        locate(table(["1", "2"]), str(tmp_path))


def test_a_bucket_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's memory file system replaces s3 and gs, for which we have no packages or servers."""
    bucket = fsspec.filesystem("memory")
    for name in ("/clips/a/1.mp4", "/clips/2.webm"):
        bucket.pipe_file(name, b"")
    monkeypatch.setattr("trainer.data.storage.SCHEMES", ("memory",))
    assert locate(table(["1", "2", "3"]), "memory://clips") == [
        "memory:///clips/a/1.mp4", "memory:///clips/2.webm", "",
    ]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_web_server_is_listed_or_asked_for_mp4(tmp_path: Path, server: str) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "1.webm").touch()
    (tmp_path / "clips" / "a b.mp4").touch()
    found = [f"{server}/clips/1.webm", "", f"{server}/clips/a%20b.mp4"]
    assert locate(table(["1", "2", "a b"]), f"{server}/clips") == found
    assert locate(table(["a/b"]), f"{server}/nothing") == [f"{server}/nothing/a%2Fb.mp4"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    """A folder of links to folders of videos is what many have; a link back to the top is no endless way."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "7.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a").symlink_to(store)
    (tmp_path / "videos" / "b").symlink_to(store)
    (store / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "ids.txt").write_text("7\n")
    assert locate(read_items(tmp_path / "ids.txt"), str(tmp_path / "videos")) == [str(tmp_path / "videos/a/7.mp4")]


def test_a_column_of_ids_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("vid,title\n7,Cat\n")
    assert read_items(tmp_path / "a.csv", ("vid",)).rows() == [("7", "Cat", None)]
    with pytest.raises(UserError, match="no column 'video_id'"):
        read_items(tmp_path / "a.csv", ("video_id",))
