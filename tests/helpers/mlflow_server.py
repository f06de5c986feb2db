"""A real MLflow server for tests that can be told to fail."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from typing import Any


class Server:
    """MLflow's own server application on 127.0.0.1, with injected faults; it can stop and start again.

    mode: "ok"; "500"; "hang": no answer; "lose": the first request of each kind is executed but not answered.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self.mode = "ok"
        self.seen: Counter[str] = Counter()
        self.lost: set[str] = set()
        self._released = threading.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._server: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen[self.mode] += 1
        path = environ["PATH_INFO"]
        if self.mode == "500":
            start_response("500 Internal Server Error", [("Content-Type", "application/json")])
            return [b"{}"]
        if self.mode == "hang":
            self._released.wait(60)
        answer = self._application(environ, start_response)
        if self.mode == "lose" and path not in self.lost:
            self.lost.add(path)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer

    def up(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self._port, self, threaded=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def release(self) -> None:
        self._released.set()
