"""Answer over HTTP with an exported model: recommendations, similar items, explanations; on Ray Serve.

Example: mealrec serve --model export/demo
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import console
from cluster.serving import Serving, served
from models.errors import UserError
from retrieval.index.kinds import KINDS
from trainer.commands.model_source import ModelSource, add_model_argument, model_source
from trainer.local_path import local_path

if TYPE_CHECKING:
    from retrieval.service.app import Service

TOKEN = "MEALREC_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mealrec serve`."""
    add_model_argument(parser)
    parser.add_argument("--index", default="exact", choices=["exact", *KINDS], metavar="KIND",
                        help="how to rank: exact, or by an index that `mealrec index` made (exact)")  # fmt: skip
    parser.add_argument("--data", type=local_path, metavar="DIR",
                        help="a prepared dataset, to answer for its users by their ids")  # fmt: skip
    parser.add_argument("--thumbnails", type=local_path, metavar="DIR",
                        help="pictures of items for the page, called ID.jpg, .png or .webp")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1",
                        help=f"address to listen on (127.0.0.1); any other needs a token in {TOKEN}")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="(8000)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="copies of the model (1)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="CPUs and threads of each replica (1)")
    parser.add_argument("--queue", type=int, default=256, metavar="N",
                        help="requests that wait when all replicas are busy; more are answered 503 (256)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds a request may take (10)")
    parser.add_argument("--rate", type=float, default=0.0, metavar="N",
                        help="requests per second and replica; more are answered 429 (0: any number)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code."""
    token = os.environ.get(TOKEN) or None
    _check(args, token)
    source = model_source(args.model)
    data, pictures = (folder and Path.cwd() / folder for folder in (args.data, args.thumbnails))
    make = partial(_service, source, args.index, data, args.cpus, token, args.rate, pictures)
    described = _describe(args, source)
    serving = Serving(args.host, args.port, args.replicas, args.cpus, queued=args.queue, timeout_s=args.timeout)
    console.say(f"starting Ray Serve for {described}")
    try:
        with served(make, serving), _sigterm() as sigterm:
            url = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
            console.say(f"serving {args.model} at {url}; Ctrl-C stops it\n{_try(url)}")
            sigterm.wait()
            console.say("SIGTERM: requests that have begun are answered, then this ends")
    except KeyboardInterrupt:
        console.say("stopped")
    return 0


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Set once SIGTERM has come in the block; to be entered after Ray was started, which has a handler of its own."""
    come = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: come.set())
    try:
        yield come
    finally:
        signal.signal(signal.SIGTERM, former)


def _describe(args: argparse.Namespace, source: ModelSource) -> str:
    """What is served, in words. Raises UserError, before Ray starts, for a model or data that cannot be loaded."""
    from retrieval.recommender import Recommender

    if args.data is not None:
        _histories(args.data)
    recommender = Recommender.load(source.folder(), args.index)
    return f"{recommender.card.system}, ranking by {recommender.description}"


def _check(args: argparse.Namespace, token: str | None) -> None:
    for name, least in (("replicas", 1), ("cpus", 1), ("queue", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: give at least {least}")
    if not 0 < args.port < 1 << 16:
        raise UserError(f"--port {args.port}: a port is a number from 1 to 65535")
    if args.thumbnails is not None and not args.thumbnails.is_dir():
        raise UserError(f"--thumbnails {args.thumbnails} is no folder; give one with pictures called by the items' ids")
    if not args.timeout > 0 or not args.rate >= 0:
        raise UserError("--timeout is above 0 and --rate not below 0")
    try:
        loopback = ipaddress.ip_address(args.host).is_loopback
    except ValueError:
        raise UserError(f"--host {args.host}: give an address such as 127.0.0.1 or 0.0.0.0") from None
    if not loopback and token is None:
        raise UserError(
            f"--host {args.host} can be reached from other machines, and everybody there could ask; put a secret into "
            f"the variable {TOKEN}, which clients send as the header Authorization: Bearer SECRET"
        )


def _try(url: str) -> str:
    return (
        f"look:    {url}/ in a browser\n"
        f"try it:  curl {url}/v1/model\n"
        f'         curl {url}/v1/recommend -H \'content-type: application/json\' -d \'{{"history": ["ITEM"], "k": 5}}\''
    )


def _service(
    source: ModelSource,
    index: str,
    data: Path | None,
    threads: int,
    token: str | None,
    rate: float,
    thumbnails: Path | None = None,
) -> Service:
    """What runs in a replica. Imported there, so it must be a function of a module."""
    import torch

    from retrieval.recommender import Recommender
    from retrieval.service.app import Service
    from retrieval.service.guard import Limits
    from retrieval.service.thumbnails import Thumbnails

    torch.set_num_threads(threads)
    histories = None if data is None else _histories(data)

    def load() -> Recommender:
        return Recommender.load(source.folder(), index, threads=threads)

    limits, pictures = Limits(token=token, rate=rate), Thumbnails(thumbnails) if thumbnails else None
    return Service(load, histories, limits, source.identity(), source.poll_s, pictures)


def _histories(data: Path) -> Callable[[str], Sequence[str]]:
    from trainer.data.format.dataset import Dataset
    from trainer.data.histories import UserHistories

    return UserHistories(Dataset.open(str(data))).of
