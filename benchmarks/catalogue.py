"""One training step of SASRec by the size of the catalogue: full softmax, a sample, and a sample with lazy Adam.

Rows and items are random; CPU seconds are means over the steps after the first, each figure in a process of its own.

Example:
    python benchmarks/catalogue.py --items 100000 1000000 --ways full sampled lazy
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from bench_common import memory_mb

from models.contract import Batch, ModelContext, SequenceModel, TrainingInteractions
from models.systems import build, options_of
from models.tensor_table import TensorTable
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.training.engine import TorchEngine

_ROWS, _LENGTH, _NEGATIVES = 2048, 10, 4096
_CPU = torch.device("cpu")


def batch(step: int, items: int) -> Batch:
    """Random rows of one step."""
    generator = torch.Generator().manual_seed(step)
    length = torch.randint(1, _LENGTH + 1, (_ROWS,), generator=generator)
    history = torch.randint(1, items, (_ROWS, _LENGTH), generator=generator)
    history *= torch.arange(_LENGTH) < length[:, None]
    target, row = torch.randint(1, items, (_ROWS,), generator=generator), torch.arange(_ROWS)
    return Batch(row, history, length, target, row + step * _ROWS, torch.zeros_like(history, dtype=torch.uint8))


def one(items: int, way: str, steps: int) -> str:
    """A row of the table, measured here."""
    torch.set_num_threads(1)
    seen = TrainingInteractions(4 * torch.arange(200_001), torch.randint(1, items, (800_000,)))
    options = options_of("sasrec", {"ranking": {"negatives": 0 if way == "full" else _NEGATIVES}})
    model = build("sasrec", options, ModelContext(TensorTable(items, {}, {}, {}), seen, _LENGTH, 1))
    assert isinstance(model, SequenceModel)
    engine = TorchEngine(model, TrainConfig(lazy_adam=way == "lazy"), EngineConfig(name="torch"), _CPU)
    engine.step([(batch(0, items), 1.0)])
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(1, steps + 1):
        engine.step([(batch(step, items), 1.0)])
    cpu, wall = (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps
    return f"| {items:,} | {way} | {cpu:.2f} | {wall:.2f} | {memory_mb(_CPU)['rss_mb'] / 1024:.2f} |"


def main() -> None:
    """Measure each size in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", default=["full", "sampled", "lazy"], choices=["full", "sampled", "lazy"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="one size in one way, in this process")
    args = parser.parse_args()
    if args.here:
        print(one(args.items[0], args.ways[0], args.steps), flush=True)
        return
    print("| items | way | CPU s a step | wall s | peak GiB |\n|---|---|---|---|---|", flush=True)
    for items in args.items:
        for way in args.ways:
            own = ["--here", "--items", str(items), "--ways", way, "--steps", str(args.steps)]
            subprocess.run([sys.executable, __file__, *own], check=True)


if __name__ == "__main__":
    main()
