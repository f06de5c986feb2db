"""`mealrec prepare table` by the size of the log: seconds for a million rows, and peak memory, for each kind of file.

Example:
    python benchmarks/logs.py --rows 1000000 10000000 --kinds parquet csv.gz --out benchmarks/results
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

_PART_ROWS = 5_000_000
#: interactions of a user and of an item, on average
_PER_USER, _PER_ITEM = 20, 50
_ZIPF = 0.8


def write_log(folder: Path, rows: int, kind: str, per_item: int = _PER_ITEM) -> None:
    """A log in parts, in the order of time: users at random, items by a power law. kind: parquet, csv, csv.gz ..."""
    folder.mkdir(parents=True)
    rng, items = np.random.default_rng(0), max(1, rows // per_item)
    weight = np.cumsum(np.arange(1, items + 1) ** -_ZIPF)
    for number, start in enumerate(range(0, rows, _PART_ROWS)):
        count = min(_PART_ROWS, rows - start)
        drawn = np.searchsorted(weight, rng.random(count) * weight[-1])
        frame = pl.DataFrame({
            "user": rng.integers(0, max(1, rows // _PER_USER), count), "item": np.minimum(drawn, items - 1),
            "time": 1_700_000_000 + np.arange(start, start + count) // 10,
        })  # fmt: skip
        part = folder / f"part-{number:04}.{kind}"
        if kind == "parquet":
            frame.write_parquet(part)
        else:
            compression = {"csv": "uncompressed", "csv.gz": "gzip", "csv.zst": "zstd"}[kind]
            frame.write_csv(part, compression=compression)  # type: ignore[arg-type]


def measure(rows: int, kind: str, partitions: int | None) -> dict[str, float | int | str]:
    """One `mealrec prepare table` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log, out = Path(folder) / "log", Path(folder) / "data"
        write_log(log, rows, kind)
        size = sum(part.stat().st_size for part in log.iterdir())
        command = [sys.executable, "-m", "trainer.cli", "prepare", "table", "--file", str(log), "--user", "user",
                   "--item", "item", "--time", "time", "--out", str(out)]  # fmt: skip
        command += ["--partitions", str(partitions)] if partitions else []
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        wall, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
    return {"rows": rows, "kind": kind, "log_mb": size / 1e6, "dataset_mb": written / 1e6, "seconds": wall,
            "cpu_seconds": cpu, "peak_gib": usage.ru_maxrss / 2**20}  # fmt: skip


def table(results: Sequence[dict[str, float | int | str]]) -> Iterator[str]:
    """The results as Markdown."""
    yield "| rows | files | log MB | dataset MB | s | s per million rows | CPU s per million rows | peak GiB |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in results:
        million = float(r["rows"]) / 1e6
        yield (
            f"| {r['rows']:,} | {r['kind']} | {r['log_mb']:,.0f} | {r['dataset_mb']:,.0f} | {r['seconds']:.0f} | "
            f"{float(r['seconds']) / million:.2f} | {float(r['cpu_seconds']) / million:.2f} | {r['peak_gib']:.2f} |"
        )


def main() -> None:
    """Measure, print, and write a dated page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--kinds", nargs="+", default=["parquet"], choices=["parquet", "csv", "csv.gz", "csv.zst"])
    parser.add_argument("--partitions", type=int, help="as `prepare table` takes it (default: the log in memory)")
    parser.add_argument("--out", type=Path, help="folder for a dated page")
    args = parser.parse_args()
    results = []
    for rows in args.rows:
        for kind in args.kinds:
            results.append(measure(rows, kind, args.partitions))
            print(*table(results[-1:]), sep="\n", flush=True)
    day = datetime.date.today().isoformat()
    lines = [f"# Preparing logs, {day}", "", f"`python benchmarks/logs.py {' '.join(sys.argv[1:])}`", "",
             f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, polars "
             f"{pl.__version__}.", "", *table(results)]  # fmt: skip
    if args.out:
        (args.out / f"{day}-logs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
