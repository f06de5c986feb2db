"""One training step of SASRec by the size of the catalogue: full softmax, a sample, and a sample with lazy Adam.

Rows and items are random; CPU seconds are means over the steps after the first, each figure in a process of its own.
sharded is lazy with engine.item_rows=sharded, on as many workers of this machine as --workers says: figures are of the
worker that takes most, and all of them share the rows of a step.

Examples:
    python benchmarks/catalogue.py --items 100000 1000000 --ways full sampled lazy
    python benchmarks/catalogue.py --items 1000000 --ways lazy sharded --workers 1 2 4
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from bench_common import memory_mb

from models.contract import Batch, ModelContext, SequenceModel, TrainingInteractions
from models.row_share import RowShare
from models.systems import build, options_of
from models.tensor_table import TensorTable
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.process import world
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
    """A row of the table, measured here, and by the other workers."""
    torch.set_num_threads(1)
    rank, size = world()
    seen = TrainingInteractions(4 * torch.arange(200_001), torch.randint(1, items, (800_000,)))
    options = options_of("sasrec", {"ranking": {"negatives": 0 if way == "full" else _NEGATIVES}})
    share = RowShare(rank, size, items) if way == "sharded" and size > 1 else None
    context = ModelContext(TensorTable(items, {}, {}, {}), seen, _LENGTH, 1, share=share)
    model = build("sasrec", options, context)
    assert isinstance(model, SequenceModel)
    engine = TorchEngine(model, TrainConfig(lazy_adam=way in ("lazy", "sharded")), EngineConfig(name="torch"), _CPU)
    mine = slice(rank * _ROWS // size, (rank + 1) * _ROWS // size)
    engine.step([(batch(0, items)[mine], 1 / size)])
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(1, steps + 1):
        engine.step([(batch(step, items)[mine], 1 / size)])
    cpu, wall = (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps
    most = torch.tensor([cpu, wall, memory_mb(_CPU)["rss_mb"] / 1024, _tables(engine)])
    if size > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    cpu, wall, peak, tables = most.tolist()
    return f"| {items:,} | {way} | {size} | {cpu:.2f} | {wall:.2f} | {tables:.2f} | {peak:.2f} |"


def _tables(engine: TorchEngine) -> float:
    """GiB of the item table and its moments on this worker."""
    table = engine.model.get_parameter("item_embedding.weight")
    state = engine._adam.state[table]
    return (table.nbytes + state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes) / 2**30


def _on_workers(size: int, arguments: list[str]) -> None:
    """Run this file with `arguments` in `size` processes of one group; the first one prints."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"WORLD_SIZE": str(size), "BENCH_STORE": str(Path(folder) / "store"), "GLOO_SOCKET_IFNAME": "lo"}
        workers = [
            subprocess.Popen([sys.executable, __file__, *arguments], env={**os.environ, **settings, "RANK": str(rank)})
            for rank in range(size)
        ]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise SystemExit("a worker failed")


def main() -> None:
    """Measure each size in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", default=["full", "sampled", "lazy"],
                        choices=["full", "sampled", "lazy", "sharded"])  # fmt: skip
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="of the way sharded (1)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="one size in one way, in this process")
    args = parser.parse_args()
    if args.here:
        size, rank = (int(os.environ.get(name, "01"[name == "WORLD_SIZE"])) for name in ("WORLD_SIZE", "RANK"))
        if size > 1:
            store = dist.FileStore(os.environ["BENCH_STORE"], size)  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        row = one(args.items[0], args.ways[0], args.steps)
        if rank == 0:
            print(row, flush=True)
        return
    print("| items | way | workers | CPU s a step | wall s | tables GiB | peak GiB |\n" + "|---" * 7 + "|", flush=True)
    for items in args.items:
        for way in args.ways:
            own = ["--here", "--items", str(items), "--ways", way, "--steps", str(args.steps)]
            for size in args.workers if way == "sharded" else [1]:
                _on_workers(size, own)


if __name__ == "__main__":
    main()
