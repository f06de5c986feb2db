"""Videos over HTTP: servers with and without partial requests, and servers that fail, hang or never end."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.errors import UserError
from tests.helpers.clips import read_number, reason
from trainer.data.storage import open_file
from trainer.extract.pipeline.protocols import Sampling
from trainer.extract.video.decode import sample
from trainer.extract.video.locate import locate


class Handler(http.server.BaseHTTPRequestHandler):
    """/range/, /whole/ (no parts of files), /nolength/, /flaky/ (two errors per file), /broken/, /endless/, /stall/,
    /moved/ (to /range/), /HOST:PORT/ (redirects to /range/ there)."""

    protocol_version = "HTTP/1.1"
    folder: Path
    answered: Counter[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        how, name = self.path.strip("/").split("/")
        self.answered[how] += 1
        path = self.folder / name
        if how == "moved" or ":" in how:
            return self.redirect(f"/range/{name}" if how == "moved" else f"http://{how}/range/{name}")
        if how == "stall":
            time.sleep(30)
        if how == "broken" or (how == "flaky" and self.answered[how] in (1, 2, 5, 6)):
            return self.answer(503, b"")
        if not path.is_file():
            return self.answer(404, b"")
        if how in ("endless", "nolength"):
            return self.stream(path.read_bytes(), 1 if how == "nolength" else 10**9)
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or how == "whole":
            return self.answer(200, data)
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        return self.answer(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status: int, body: bytes, part: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if part is not None:
            self.send_header("Content-Range", part)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def stream(self, body: bytes, times: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for _ in range(times if self.command == "GET" else 0):
                self.wfile.write(body)


@pytest.fixture
def server(clip: Path) -> Iterator[str]:
    Handler.folder, Handler.answered = clip.parent, Counter()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["range", "whole", "nolength", "flaky", "moved"])
def test_over_http(server: str, way: str) -> None:
    frames, times = sample(f"{server}/{way}/clip.mp4", Sampling(timeout=20))
    assert [read_number(frame) for frame in frames] == [75, 100, 125, 150, 175]
    np.testing.assert_allclose(times, [3, 4, 5, 6, 7])
    assert way != "flaky" or Handler.answered[way] > 6


def test_http_that_gives_no_video(server: str, clip: Path) -> None:
    assert reason(f"{server}/range/missing.mp4") == "no such file"
    assert Handler.answered["range"] <= 2  # a HEAD and a GET, not tried again
    assert reason(f"{server}/broken/clip.mp4") == "HTTP 503"
    assert Handler.answered["broken"] == 6
    size = clip.stat().st_size
    assert reason(f"{server}/endless/clip.mp4", Sampling(max_bytes=10 * size)).endswith("bytes without an end")
    assert reason(f"{server}/whole/clip.mp4", Sampling(max_bytes=size - 1)).endswith("without range requests")
    host = server.removeprefix("http://")
    assert reason(f"http://{host.split(':')[0]}:9/clip.mp4").startswith("network: ")


def test_another_host_or_port_is_not_asked_though_the_server_sends_us_there(server: str) -> None:
    """`localhost` is another host than 127.0.0.1, and another port may be another service."""
    port = server.rpartition(":")[2]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            for place in (f"127.0.0.1:{other.server_port}", f"localhost:{port}"):
                told = (
                    f"its server sends us on to http://{place}, which is not followed; give the address there yourself"
                )
                assert reason(f"{server}/{place}/clip.mp4") == told
                with pytest.raises(UserError, match=re.escape(told)):
                    open_file(f"{server}/{place}/clip.mp4")
                with pytest.raises(UserError, match=re.escape(told)):
                    locate(pl.DataFrame({"item": ["clip"], "video": [None]}), f"{server}/{place}/list")
        finally:
            other.shutdown()
            thread.join()
    assert Handler.answered["range"] == 0


@pytest.mark.parametrize("way", ["stall", "endless"])
def test_http_that_takes_too_long(server: str, way: str) -> None:
    before = time.monotonic()
    assert reason(f"{server}/{way}/clip.mp4", Sampling(timeout=0.5, max_bytes=1 << 40)) == "took longer than 0.5 s"
    assert time.monotonic() - before < 20  # the server would go on for ever
