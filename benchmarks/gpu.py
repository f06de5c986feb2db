"""Correctness and speed on one GPU, in one command; writes `benchmarks/results/DATE-GPU-gpu.md`, and .json beside it.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only parity,determinism --quick --device cpu

Random data in the two sizes of the paper (bench_synthetic.py), the engine of plain torch, and the real loader, models
and evaluation. Checks come first: if one fails, the exit status is 1. A part that breaks does not stop the others.
`--device cpu --quick` only shows that the script itself works.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import torch  # noqa: E402 - after the path
from bench_common import choose_device, stand_in_for_webdataset  # noqa: E402

stand_in_for_webdataset()

from gpu_checks import CHECKS  # noqa: E402
from gpu_lab import Lab  # noqa: E402
from gpu_page import page  # noqa: E402
from gpu_speed import SPEEDS  # noqa: E402

PARTS = {**CHECKS, **SPEEDS}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny data: shows that every part runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="(benchmarks/results)")
    args = parser.parse_args()
    args.only = [name.strip() for name in args.only.split(",")]
    if unknown := [name for name in args.only if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --quick only tries the script")
    return args


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The result so far, after each part that was asked for; {"failed": why} where a part has none."""
    device = choose_device(args.device)
    lab = Lab(folder, device, quick=args.quick)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "cuda": torch.version.cuda, "parts": {},
    }  # fmt: skip
    for name in args.only:
        started = time.perf_counter()
        try:
            found = PARTS[name](lab)
        except Exception as error:  # a part must not take the others with it
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        result["parts"][name] = found
        print(f"[{name}] {time.perf_counter() - started:.1f} s {json.dumps(found, default=str)[:1200]}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield result


def main() -> int:
    """Measure, write after each part, so that little is lost where time ends, and say what failed."""
    args = parse_arguments()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mealrec-gpu-") as folder:
        for result in measure(args, Path(folder)):
            path = write(result, args.out)
    print(f"written: {path}")
    bad = [name for name, found in result["parts"].items() if "failed" in found or found.get("wrong")]
    for name in bad:
        found = result["parts"][name]
        print(f"FAILED {name}: {found.get('failed') or found['wrong']}")
    return 1 if bad else 0


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write the page and the figures; returns where the page is."""
    hardware = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['date'][:10]}-{hardware}-gpu.md"
    path.write_text(page(result), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
