"""Measures everything in one run and writes one dated file: `benchmarks/results/DATE-HARDWARE.md`, and .json beside it.

    python benchmarks/benchmark.py --data data/sample --recbole build/recbole-2020.json
    python benchmarks/benchmark.py --size big

Training, evaluation and memory of each model; loaders; shards; retrieval; the start of a Ray run. On the GPU where
there is one. A part whose package is missing is reported so; a part that fails too, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench_report import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODELS = (
    "sasrec", "cl4srec", "tedrec", "mealrec-sasrec", "mealrec-cl4srec", "mealrec-tedrec", "ssdrec", "diqdiff", "morec",
    "iisan", "iisan-versa", "dmmd4sr", "mmgcn", "m3bsr",
)  # fmt: skip
SIZES = ("small", "big", "sample", "tiny")
_PART_TIMEOUT_S = 3600

Result = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="a folder that `mealrec prepare` wrote")
    source.add_argument("--size", choices=SIZES, help="instead: random data of this size (small and big: MicroLens)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help=f"{MODELS}")
    parser.add_argument("--recipe", help="options of the models (microlens where it exists, else their defaults)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="over the recipe")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every part (1)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=20.0, help="about how long one figure may take (20)")
    budget.add_argument("--epochs", type=int, default=0, help="instead, train so many whole epochs per model")
    parser.add_argument("--repeats", type=int, default=5, help="a figure is the median of so many, at least 3 (5)")
    parser.add_argument("--recbole", type=Path, help="what recbole_reference.py wrote, to compare SASRec with")
    parser.add_argument("--quick", action="store_true", help="a tiny run of every part, to see that it works")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="(benchmarks/results)")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.repeats, args.recipe = 0.2, 3, args.recipe or "demo"
    args.repeats = max(3, args.repeats)
    if args.data is None and args.size is None:
        if not args.quick:
            parser.error("give --data DIR, or --size small|big|sample for random data")
        args.size = "tiny"
    return args


class Runner:
    """Runs parts, each in a process of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._folder = folder
        self._settings = folder / "settings.json"
        self._threads = args.threads
        self.data = args.data.resolve() if args.data else folder / "synthetic"
        values = {
            "data": str(self.data), "recipe": recipe(args), "settings": args.set, "device": args.device,
            "threads": args.threads, "seconds": args.seconds, "repeats": args.repeats, "epochs": args.epochs,
            "quick": args.quick, "size": args.size,
        }  # fmt: skip
        self._settings.write_text(json.dumps(values), encoding="utf-8")

    def run(self, part: str) -> Result:
        """The result of `part`; {"missing": what} or {"failed": why} where there is none."""
        print(f"{part} ...", file=sys.stderr, flush=True)
        target = self._folder / "result.json"
        target.unlink(missing_ok=True)
        paths = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]  # for Ray's workers, too
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        done = subprocess.run(
            [sys.executable, str(HERE / "bench_part.py"), part, str(self._settings), str(target)],
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True,
            timeout=_PART_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode == 0 and target.exists():
            result: Result = json.loads(target.read_text(encoding="utf-8"))
            return result
        print(done.stderr, file=sys.stderr)
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1]}


def recipe(args: argparse.Namespace) -> str:
    """The recipe asked for; else microlens, else the models' defaults."""
    if args.recipe:
        return str(args.recipe)
    return "microlens" if (ROOT / "trainer/config/recipes/microlens.yaml").exists() else str(HERE / "defaults.yaml")


def measure(args: argparse.Namespace) -> Result:
    """Every figure of the run, and what it must be read with."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mealrec-benchmark-") as name:
        runner = Runner(args, Path(name))
        if args.size and (made := runner.run("synthetic")):
            raise SystemExit(f"cannot make the random data: {made}")
        result: Result = {
            "command": shlex.join(["python", "benchmarks/benchmark.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git": _git(), "load_before": load, "threads": args.threads, "recipe": Path(recipe(args)).stem,
            "repeats": args.repeats, "seconds": args.seconds,
            "machine": {**_hardware(), **runner.run("machine")}, "data": _data(runner.data, args.size),
            "models": {model: runner.run(f"model:{model}") for model in args.models},
        }  # fmt: skip
        for part in ("loaders", "shards", "retrieval", "ray"):
            result[part] = runner.run(part)
    result["ratios"] = ratios(result["models"])
    if args.recbole:
        result["recbole"] = against_recbole(args.recbole, result)
    return result


def ratios(models: Result) -> Result:
    """Seconds per step of each MealRec over TedRec's, where both take steps of the same batch size."""
    found: Result = {}
    base = models.get("tedrec", {})
    for name, model in models.items():
        same = "training" in base and "training" in model and base["batch_size"] == model["batch_size"]
        if name.startswith("mealrec") and same:
            step, of = model["training"]["step"], base["training"]["step"]
            found[f"{name}/tedrec"] = {key: step[key] / max(of[key], 1e-9) for key in ("wall_s", "cpu_s")}
    return found


def against_recbole(path: Path, result: Result) -> Result:
    """CPU seconds per epoch of our SASRec over RecBole's, and whether both saw the same rows and threads."""
    reference = json.loads(path.read_text(encoding="utf-8"))
    ours = result["models"].get("sasrec", {})
    if "training" not in ours:
        return {"missing": "SASRec was not measured"}
    theirs = {key: statistics.median(e[key] for e in reference["timing"]["epochs"]) for key in ("cpu_s", "wall_s")}
    cpu = ours["training"]["epoch_cpu_s"]
    return {
        "ours_cpu_s": cpu, "recbole_cpu_s": theirs["cpu_s"], "cpu_ratio": cpu / theirs["cpu_s"],
        "ours_wall_s": ours["training"]["epoch_wall_s"], "recbole_wall_s": theirs["wall_s"],
        "same_data": reference["data"]["manifest_sha256"] == result["data"]["manifest_sha256"],
        "same_threads": reference["threads"] == result["threads"],
        "batch_sizes": [ours["batch_size"], reference["options"]["train_batch_size"]],
        "recbole_measured": reference["started"], "recbole_cpu": reference["environment"]["cpu"],
    }  # fmt: skip


def _data(folder: Path, size: str | None) -> Result:
    text = (folder / "manifest.json").read_bytes()
    manifest = json.loads(text)
    return {
        "name": f"random, size {size}" if size else folder.name,
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
        **{key: manifest[key] for key in ("users", "items", "interactions", "train_rows", "max_length")},
        "content": {name: info["shape"] for name, info in manifest["content"].items()},
    }


def _hardware() -> Result:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory, 1),
    }


def _git() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "--short=12", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _failures(result: Any, where: str = "") -> list[str]:
    if not isinstance(result, dict):
        return []
    if "failed" in result:
        return [f"{where}: {result['failed']}"]
    return [failure for key, value in result.items() for failure in _failures(value, f"{where} {key}".strip())]


def main() -> int:
    """Measure, write, and say where."""
    args = parse_arguments()
    result = measure(args)
    machine = result["machine"]
    device = machine.get("device", "cpu")
    words = f"{machine['cores']}-core {machine['cpu']}" if device == "cpu" else device
    hardware = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{result['date'][:10]}-{hardware}.md"
    path.write_text(report(result), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path}", file=sys.stderr)
    failed = _failures(result)
    print("".join(f"FAILED {line}\n" for line in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
