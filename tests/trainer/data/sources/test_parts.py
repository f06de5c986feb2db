"""The files of a log: packed, in folders, by patterns, at URLs, several at once; all give what one file gives."""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import polars as pl
import pyarrow as pa
import pytest

from models.errors import UserError
from trainer.data.sources.base import Log
from trainer.data.sources.parts import parts_of
from trainer.data.sources.table import read_table

ROWS = [("u", "a", 1), ("u", "b", 2), ("v", "c", 3), ("v", "a", 4)]
HEAD = b"user,item,time\n"


def _csv(*rows: int) -> bytes:
    return HEAD + b"".join(",".join(map(str, ROWS[row])).encode() + b"\n" for row in rows)


def _read(*files: str | Path, user: str = "user") -> Log:
    return read_table(files, user, "item", "time")


def _put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
        return path
    path.write_bytes(content)
    return path


def _folder(folder: Path) -> Path:
    _put(folder, "day=1/part-0.csv.gz", _csv(0))
    _put(folder, "day=1/part-1.csv.zst", _csv(1))
    _put(folder, "day=2/part-2.CSV", _csv(2))
    _put(folder, "day=2/part-3.tsv", _csv(3).replace(b",", b"\t"))
    _put(folder, "day=2/part-4.csv", HEAD)
    for ignored in ("_SUCCESS", ".part-0.csv.crc", "day=2/notes.txt"):
        _put(folder, ignored, b"\0")
    return folder


def test_a_folder_a_pattern_and_a_list_of_parts_are_one_log(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log")
    for log in (_read(folder), _read(f"{folder}/*/part-*", f"{folder}/day=1"), _read(folder.as_uri())):
        assert log.frame.rows() == ROWS
    assert [path.name for path in _read(folder).files] == [f"part-{n}" + end for n, end in enumerate(
        (".csv.gz", ".csv.zst", ".CSV", ".tsv", ".csv"))]  # fmt: skip
    assert len(parts_of([str(folder), f"{folder}/day=1/part-0.csv.gz"])) == 5


def test_parquet_is_packed_and_mixed_with_its_like(tmp_path: Path) -> None:
    names = ["user", "item", "time"]
    pl.DataFrame(ROWS[:2], names, orient="row").write_parquet(tmp_path / "a.parquet")
    _put(tmp_path, "b.parquet.gz", (tmp_path / "a.parquet").read_bytes())
    pl.DataFrame(ROWS[2:], names, orient="row").write_parquet(tmp_path / "c.pq")
    log = _read(tmp_path)
    assert (log.frame.rows(), log.dropped) == (ROWS, {"duplicate rows": 2})
    _put(tmp_path, "d.csv", _csv(0))
    with pytest.raises(UserError, match=r"differ in the type of 'time' \(Int64, String\)"):
        _read(tmp_path)


def test_a_path_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    _put(tmp_path, "log[1].csv", _csv(0, 1))
    _put(tmp_path, "log1.csv", _csv(2))
    _put(tmp_path, "what?", _csv(3))
    assert _read(tmp_path / "log[1].csv").frame.rows() == ROWS[:2]
    assert _read(tmp_path / "what?").frame.rows() == ROWS[3:]
    assert _read(tmp_path / "log[1-9].csv").frame.rows() == ROWS[2:3]
    with pytest.raises(UserError, match=r"no file matches .*log\[2\]\.csv"):
        _read(tmp_path / "log[2].csv")


def test_messages_name_the_part_as_it_was_given(tmp_path: Path) -> None:
    _put(tmp_path, "a.csv", _csv(0, 1))
    _put(tmp_path, "b.csv.gz", _csv(2) + b"v,,9\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/b\.csv\.gz, line 3: item is missing"):
        _read(tmp_path)
    _put(tmp_path, "b.csv.gz", b"user,item\nv,a\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/b\.csv\.gz, line 1 has no column 'time'"):
        _read(tmp_path)


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst"])
def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    path = _put(tmp_path, name, HEAD + b"".join(b"u%d,i%d,%d\n" % (n, 7 * n, n) for n in range(999)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{name}.*is no whole"):
        _read(path)
    path.write_bytes(_csv(0))
    with pytest.raises(UserError, match=rf"{name}.*is no whole"):
        _read(path)


def test_logs_at_urls_are_read_and_their_digests_kept(tmp_path: Path) -> None:
    packed = _put(tmp_path, "log.csv.gz", _csv(0, 1, 2, 3)).read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/log.csv.gz"
        log = _read(url)
        with pytest.raises(UserError, match=r"cannot open .*none"):
            _read(url.replace("log.csv.gz", "none.csv"))
        server.shutdown()
    assert log.frame.rows() == ROWS
    assert (log.files, log.digests) == ((), {url: hashlib.sha256(packed).hexdigest()})


def test_urls_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only file, http, https, s3, gs URLs"):
        _read("ftp://host/log.csv")
    with pytest.raises(UserError, match="no file matches"):
        _read(f"{tmp_path.as_uri()}/*.csv")
