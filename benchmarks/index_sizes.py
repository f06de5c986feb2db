"""Ranking by the size of the catalogue: exact, and each kind of index with the effort that finds .99 of the first 20.

Examples:
    python benchmarks/index_sizes.py --items 10000 100000 1000000
    python benchmarks/index_sizes.py --model export/first
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.exact import exact_topk
from retrieval.index.build import build_index
from retrieval.index.kinds import KINDS
from retrieval.index.tune import Exact

_WIDTH, _K = 64, 20
_MEASURED = 512  # users for recall, others than those by which an effort is found
_SECONDS = 3.0
Vectors = NDArray[np.float32]


def made(count: int, centres: int, seed: int) -> Vectors:
    """Unit vectors around common centres: learned ones are clustered, and for white noise no index is good."""
    middle = np.random.default_rng(7).normal(size=(centres, _WIDTH)).astype(np.float32)
    draw = np.random.default_rng(seed)
    vectors = middle[draw.integers(0, centres, count)] + 0.7 * draw.normal(size=(count, _WIDTH)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def of_model(folder: Path) -> tuple[Vectors, Vectors]:
    """The item vectors of an exported model, and those of users with random histories of 3 items."""
    from retrieval.recommender import Recommender

    model = Recommender.load(folder)
    histories = np.random.default_rng(0).integers(1, len(model.items) + 1, size=(4096, 3)).tolist()
    return model.item_vectors.numpy(), model.encode(histories).numpy()


def users_per_second(search: object, users: Vectors, batch: int) -> float:
    """By calls with `batch` users each, for some seconds; the first call is not counted."""
    assert callable(search)
    search(users[:batch])
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS:
        start = done % (len(users) - batch + 1)
        search(users[start : start + batch])
        done += batch
    return done / (time.perf_counter() - started)


def rows(items: Vectors, users: Vectors, kinds: Sequence[str], recall: float) -> Iterator[list[str]]:
    """A line for each way of ranking."""
    tensor, queries, others = torch.from_numpy(items), users[_MEASURED:], users[:_MEASURED]
    exact = Exact.of(others, items, _K)
    base = users_per_second(lambda some: exact_topk(torch.from_numpy(some), tensor, _K), users, 256)
    yield ["exact", f"{base:,.0f}", "1", "1.0000", "-", f"{items.nbytes / 1e6:,.1f}", ""]
    for kind in kinds:
        started = time.perf_counter()
        index = build_index(items, kind, checksum="", device="cpu", threads=1, queries=queries, recall=recall)
        built = time.perf_counter() - started
        speed = users_per_second(lambda some, index=index: index.search(some, _K), users, 256)
        found = float(exact.found(index.search(others, _K)[1]).mean())
        size = len(index.packed().data) / 1e6
        chosen = " ".join(f"{name}={value}" for name, value in index.record.parameters.items())
        yield [kind, f"{speed:,.0f}", f"{speed / base:,.0f}", f"{found:.4f}", f"{built:,.1f}", f"{size:,.1f}", chosen]


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--centres", type=int, default=1000, help="of the made vectors (1000)")
    parser.add_argument("--model", type=Path, help="measure on the vectors of an exported model instead")
    parser.add_argument("--kinds", nargs="+", default=[*KINDS])
    parser.add_argument("--recall", type=float, default=0.99)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{time.strftime('%Y-%m-%d')}, one thread, {platform.machine()}\n")
    for count in [0] if args.model else args.items:
        if args.model:
            (items, users), what = of_model(args.model), str(args.model)
        else:
            items, users = made(count + 1, args.centres, 0), made(4096, args.centres, 1)
            what = f"around {args.centres:,} centres"
        print(f"{len(items) - 1:,} items of width {items.shape[1]}, {what}\n")
        print("| way | users/s | x exact | recall@20 | build s | MB | chosen |\n|---|---|---|---|---|---|---|")
        for row in rows(items, users, args.kinds, args.recall):
            print("|", " | ".join(row), "|", flush=True)
        print()


if __name__ == "__main__":
    main()
