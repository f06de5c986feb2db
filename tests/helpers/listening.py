"""A real HTTP server for an ASGI application, on a free port of 127.0.0.1, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from cluster.head import free_ports


@contextmanager
def listening(asgi: Any) -> Iterator[str]:
    """The URL of the server, which ends with the block."""
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(asgi, "127.0.0.1", port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
