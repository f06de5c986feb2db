"""Run an ASGI application on Ray Serve: replicas of it behind a proxy, on this machine or on a cluster.

Each replica makes the application for itself. Requests that find all replicas busy wait in a queue of bounded length;
beyond it they are answered 503 at once. A replica that dies is replaced, and the others go on.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import console
from cluster.failures import PreflightError
from cluster.session import connected, on_a_cluster

NAME = "mealrec"
#: seconds that a replica which is to end may take for the requests it has begun
_DRAIN_S = 10.0


class Application(Protocol):
    """What runs in a replica. asgi: an ASGI application."""

    asgi: Any


@dataclass(frozen=True)
class Serving:
    """Where and how much. cpus: of each replica.

    at_once: requests that a replica takes at a time. queued: requests that wait beyond these, of all replicas together.
    timeout_s: the longest that a request takes, waiting included; then it is answered 408.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    cpus: float = 1.0
    at_once: int = 128
    queued: int = 256
    timeout_s: float = 10.0


@contextmanager
def served(make: Callable[[], Application], serving: Serving) -> Iterator[None]:
    """The application behind http://host:port for the block; at its end, begun requests are still answered.

    make: called in each replica; a function of a module, so that Ray can send it. Raises PreflightError if Ray Serve
    is not installed, the port is taken, or no replica could be made (with the reason).
    """
    _require_free(serving)
    with connected(cpus=max(1.0, serving.replicas * serving.cpus), gpus=0):
        serve = _ray_serve()
        logging.getLogger("ray.serve").setLevel(console.library_level(logging.WARNING))
        # where this machine is the cluster, its one proxy is the way in; on a cluster each node with replicas has one
        location = "EveryNode" if on_a_cluster(os.environ) else "HeadOnly"
        options = {"host": serving.host, "port": serving.port, "request_timeout_s": serving.timeout_s}
        log = {"encoding": "JSON", "enable_access_log": False, "log_level": console.library_level(logging.WARNING)}
        serve.start(proxy_location=location, http_options=options, logging_config=log)
        deployment = serve.deployment(
            name=NAME,
            num_replicas=serving.replicas,
            ray_actor_options={"num_cpus": serving.cpus},
            max_ongoing_requests=serving.at_once,
            max_queued_requests=serving.queued,
            graceful_shutdown_timeout_s=_DRAIN_S,
            logging_config={**log, "log_level": logging.INFO},
        )(serve.ingress()(_Replica))
        try:
            _start(serve, deployment.bind(make))
            yield
        finally:
            serve.delete(NAME)  # and not all of Ray Serve: on a cluster others may serve, too


class _Replica:
    """One replica, which makes the application for itself."""

    def __init__(self, make: Callable[[], Application]) -> None:
        logging.getLogger("mealrec.service").setLevel(logging.INFO)
        self._application = make()

    def __serve_build_asgi_app__(self) -> Any:
        return self._application.asgi


def _start(serve: Any, application: Any) -> None:
    try:
        serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise PreflightError(f"the service did not start: {error}\n{_reason(serve)}") from error


def _reason(serve: Any) -> str:
    """The end of what Ray Serve knows of a deployment that failed: the error of a replica, with its traceback."""
    application = serve.status().applications.get(NAME)
    deployments = application.deployments.values() if application else ()
    return "\n".join(deployment.message for deployment in deployments)[-3000:]


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise PreflightError(f"Ray Serve is not installed ({error}); pip install 'mealrec[serve]'") from None
    return serve


def _require_free(serving: Serving) -> None:
    """Raise PreflightError if the address cannot be listened on: Ray Serve would only say so in its proxy's log."""
    if on_a_cluster(os.environ):
        return
    with socket.socket(socket.AF_INET6 if ":" in serving.host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((serving.host, serving.port))
        except OSError as error:
            raise PreflightError(
                f"cannot listen on {serving.host} port {serving.port} ({error.strerror}); give another --port"
            ) from None
