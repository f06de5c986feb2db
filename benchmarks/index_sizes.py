"""Ranking by the size of the catalogue: exact, and by indices, with the effort that finds .99 of the first 20.

Examples:
    python benchmarks/index_sizes.py --items 10000 100000 1000000
    python benchmarks/index_sizes.py --model export/first

Seconds are CPU seconds of one thread, and exact ranking is measured in turn with each index.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
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
_BATCH = 256
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


def cpu_seconds(search: Callable[[Vectors], object], users: Vectors) -> float:
    """CPU seconds of one call: other processes on the machine add little to them, unlike to wall seconds."""
    started = time.process_time()
    search(users)
    return time.process_time() - started


def in_turn(exact: Callable[[Vectors], object], index: Callable[[Vectors], object], users: Vectors) -> list[float]:
    """Users per CPU second of both, measured in turn, so that what the machine does besides slows both."""
    spent, done, start = [0.0, 0.0], [0, 0], 0
    index(users[:_BATCH])
    while min(spent) < _SECONDS:
        which = int(spent[1] < spent[0])  # the one that has taken less time
        some = users[start : start + _BATCH]
        spent[which] += cpu_seconds((exact, index)[which], some)
        done[which] += len(some)
        start = (start + _BATCH) % (len(users) - _BATCH + 1)
    return [number / seconds for number, seconds in zip(done, spent, strict=True)]


def rows(items: Vectors, users: Vectors, kinds: Sequence[str], recall: float) -> Iterator[list[str]]:
    """A line for each way of ranking."""
    tensor, queries, others = torch.from_numpy(items), users[_MEASURED:], users[:_MEASURED]
    exact = Exact.of(others, items, _K)
    for kind in kinds:
        started = time.process_time()
        index = build_index(items, kind, checksum="", device="cpu", threads=1, queries=queries, recall=recall)
        built = time.process_time() - started
        base, speed = in_turn(
            lambda some: exact_topk(torch.from_numpy(some), tensor, _K),
            lambda some, index=index: index.search(some, _K),  # type: ignore[misc]
            users,
        )
        found = float(exact.found(index.search(others, _K)[1]).mean())
        size = len(index.packed().data) / 1e6
        chosen = " ".join(f"{name}={value}" for name, value in index.record.parameters.items())
        yield [
            kind, f"{base:,.0f}", f"{speed:,.0f}", f"{speed / base:,.1f}", f"{found:.4f}", f"{built:,.1f}",
            f"{size:,.1f}", chosen,
        ]  # fmt: skip


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
        print("| index | exact users/s | users/s | x exact | recall@20 | build s | MB | chosen |")
        print("|---|---|---|---|---|---|---|---|")
        for row in rows(items, users, args.kinds, args.recall):
            print("|", " | ".join(row), "|", flush=True)
        print()


if __name__ == "__main__":
    main()
