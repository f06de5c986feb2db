"""`python benchmarks/serving.py --items 10000` starts `mealrec serve` on an untrained SASRec of so many items, asks it
from 1, 16 and 64 clients at a time, and prints a table: answers per second, and the time of an answer.

Clients are coroutines of one process on the same machine, so they take a share of its cores. Each asks again as soon as
it has its answer. Questions are random histories of 10 items, k is 20. Nothing is written but a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import torch

from models import systems
from models.contract import ModelContext, SequenceModel, TrainingInteractions
from models.tensor_table import TensorTable
from retrieval import Recommender
from retrieval.export import index_folder, write_export
from retrieval.index.build import build_index

CLIENTS = (1, 16, 64)
_HISTORY, _K, _MAX_LENGTH = 10, 20, 10


def main() -> None:
    """Serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--index", default="exact", help="exact, flat, hnsw ... (exact)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each number of clients (15)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_sasrec(model, args.items, args.index)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "trainer.cli", "serve", "--model", str(model), "--index", args.index]
        service = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
        try:
            assert service.stdout is not None
            lines = iter(service.stdout)
            if not any(line.startswith("serving") for line in lines):
                raise SystemExit("the service did not start")
            asyncio.run(_measure(f"http://127.0.0.1:{port}/v1/recommend", args))
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def export_sasrec(out: Path, items: int, index: str) -> None:
    """Export an untrained SASRec of `items` items to `out`, with an index of that kind unless it is "exact"."""
    torch.manual_seed(0)
    context = ModelContext(
        TensorTable(items + 1, {}, {}, {}, {}),
        TrainingInteractions(torch.tensor([0, 1]), torch.tensor([1])), _MAX_LENGTH, seed=0,
    )  # fmt: skip
    model = systems.build("sasrec", systems.options_of("sasrec", {}), context)
    assert isinstance(model, SequenceModel)
    with torch.no_grad():
        vectors = model.eval().item_vectors()
    write_export(
        out, system="sasrec", options={}, similarity=model.similarity, max_length=_MAX_LENGTH,
        inference=model.inference, seed=0, weights=model.state_dict(), item_vectors=vectors,
        item_ids=[f"i{n}" for n in range(items)],
        titles=[f"title {n}" for n in range(items)], train_counts=[1] * items,
    )  # fmt: skip
    if index != "exact":
        made = Recommender.load(out)
        vectors = made.item_vectors.numpy()
        build_index(vectors, index, checksum=made.card.checksum, queries=vectors[1:]).save(index_folder(out, index))


async def _measure(url: str, args: argparse.Namespace) -> None:
    print(f"{args.items:,} items, {args.index}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| clients | answers/s | p50 ms | p95 ms | p99 ms | not answered |\n|---|---|---|---|---|---|")
    for clients in CLIENTS:
        await _ask(url, clients, 3.0, args.items)  # a warm-up
        seconds, failed = await _ask(url, clients, args.seconds, args.items)
        p50, p95, p99 = (f"{1000 * value:.1f}" for value in np.percentile(seconds, [50, 95, 99]))
        print(f"| {clients} | {len(seconds) / args.seconds:.0f} | {p50} | {p95} | {p99} | {failed} |", flush=True)


async def _ask(url: str, clients: int, duration: float, items: int) -> tuple[list[float], int]:
    """Seconds of each answer, and how many requests got none."""
    seconds: list[float] = []
    failed, end = 0, time.perf_counter() + duration

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal failed
        rng = random.Random(number)
        while time.perf_counter() < end:
            history = [f"i{rng.randrange(items)}" for _ in range(_HISTORY)]
            started = time.perf_counter()
            async with session.post(url, json={"history": history, "k": _K}) as answer:
                await answer.read()
                if answer.status == 200:
                    seconds.append(time.perf_counter() - started)
                else:
                    failed += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return seconds, failed


if __name__ == "__main__":
    main()
