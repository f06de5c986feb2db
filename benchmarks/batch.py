"""`python benchmarks/batch.py --users 1000000 --items 100000` times `mealrec recommend --users FILE --out FILE` in one
process with one thread: users per CPU second and per second of the clock, the start of the program included.

The model is an untrained SASRec (exact ranking costs the same for any weights); histories are 10 random items, k is 20.
Nothing is written but a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from serving import export_sasrec

_HISTORY, _AT_ONCE = 10, 100_000


def main() -> None:
    """Make the model and the users, recommend, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, users, out = (Path(folder) / name for name in ("model", "users.parquet", "out.parquet"))
        export_sasrec(model, args.items, "exact")
        _write_users(users, args.users, args.items)
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "trainer.cli", "recommend", "--model", str(model), "--users", str(users)]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--out", str(out), "--launcher", "inline"], check=True, env=one_thread)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{args.users:,} users, {args.items:,} items, {time.strftime('%Y-%m-%d')}: {cpu:.0f} CPU s, {wall:.0f} s, "
            f"{args.users / cpu:,.0f} users per CPU s, {out.stat().st_size / 1e6:.0f} MB, "
            f"peak {after.ru_maxrss / 1024:.0f} MiB"
        )


def _write_users(path: Path, users: int, items: int) -> None:
    """Users with random histories, in row groups of _AT_ONCE."""
    draw = np.random.default_rng(0)
    schema = pa.schema({"user": pa.string(), "items": pa.list_(pa.string())})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, users, _AT_ONCE):
            count = min(_AT_ONCE, users - start)
            ids = np.char.add("i", draw.integers(0, items, (count, _HISTORY)).astype(str))
            names = [f"u{start + n}" for n in range(count)]
            writer.write_table(pa.table([names, ids.tolist()], schema))


if __name__ == "__main__":
    main()
