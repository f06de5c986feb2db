"""How long exact ranking, flat and hnsw take by the size of the catalogue: which index `mealrec export` suggests.

Example: python benchmarks/index_sizes.py 10000 30000 100000
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.exact import exact_topk
from retrieval.index.build import build_index, recall_against_exact

_WIDTH, _CENTRES, _K = 64, 200, 20
#: users at a time -> repetitions
_USERS = {1: 15, 256: 3}


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors around common centres: learned ones are clustered, and for vectors without clusters no index is good."""
    centres = np.random.default_rng(7).normal(size=(_CENTRES, _WIDTH))
    draw = np.random.default_rng(seed)
    return (centres[draw.integers(0, _CENTRES, count)] + 0.7 * draw.normal(size=(count, _WIDTH))).astype(np.float32)


def milliseconds(function: Callable[[], object], repetitions: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def row(items: int) -> list[str]:
    """A line of the table: milliseconds for one user and for 256, exact, flat and hnsw; hnsw's recall and build."""
    catalogue, users = vectors(items + 1, seed=0), vectors(max(_USERS), seed=1)
    tensors = torch.from_numpy(users), torch.from_numpy(catalogue)
    flat = build_index(catalogue, "flat", checksum="", device="cpu", threads=1)
    started = time.perf_counter()
    hnsw = build_index(catalogue, "hnsw", checksum="", device="cpu", threads=1)
    built = time.perf_counter() - started
    cells = [f"{items:,}"]
    for n, repetitions in _USERS.items():
        ways = [lambda n=n: exact_topk(tensors[0][:n], tensors[1], _K)]
        ways += [lambda n=n, index=index: index.search(users[:n], _K) for index in (flat, hnsw)]
        cells += [f"{milliseconds(way, repetitions):.2f}" for way in ways]
    return [*cells, f"{recall_against_exact(hnsw, users, catalogue, _K):.4f}", f"{built:.1f}"]


def main() -> None:
    """Print the table, in Markdown."""
    torch.set_num_threads(1)
    header = ["items", *(f"{way}, {n}" for n in _USERS for way in ("exact", "flat", "hnsw")), "recall@20", "build s"]
    print("|", " | ".join(header), "|")
    print("|", " | ".join(["---"] * len(header)), "|")
    for items in map(int, sys.argv[1:]):
        print("|", " | ".join(row(items)), "|", flush=True)


if __name__ == "__main__":
    main()
