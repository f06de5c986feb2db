"""One part of the benchmark in a process of its own: `python bench_part.py PART settings.json result.json`.

Apart, so that its peak of memory is its own, and so that a part that fails takes no other with it.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from bench_common import Missing, Result, Settings, choose_device, installed, stand_in_for_webdataset


def measure(part: str, values: dict[str, Any]) -> Result:
    """The result of `part`: machine, synthetic, shards, loaders, retrieval, ray, or model:NAME."""
    quick = values.pop("quick")
    size = values.pop("size")
    settings = Settings(**values | {"settings": tuple(values["settings"])})
    torch.set_num_threads(settings.threads)
    kind, _, name = part.partition(":")
    # imported here: each part needs packages that another machine may lack
    if kind == "machine":
        return machine(settings)
    if kind == "ray":
        from bench_ray import ray_start

        return ray_start(settings, 1 if quick else 3)
    stand_in_for_webdataset()
    if kind == "synthetic":
        from bench_synthetic import SIZES, write

        write(Path(settings.data), SIZES[size])
        return {}
    if kind == "model":
        from bench_models import model

        return model(settings, name)
    if kind == "retrieval":
        from bench_retrieval import retrieval

        return retrieval(settings)
    from bench_data import loaders, shards

    return {"shards": shards, "loaders": loaders}[kind](settings)


def machine(settings: Settings) -> Result:
    """Device and versions that a figure must be read with."""
    from importlib.metadata import PackageNotFoundError, version

    def found(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "installed" if installed(name) else "not installed"

    device = choose_device(settings.device)
    names = ("torch", "numpy", "polars", "ray", "deepspeed", "webdataset", "mlflow", "faiss-cpu", "faiss-gpu")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(), "cuda": torch.version.cuda,
        "versions": {name: found(name) for name in names},
    }  # fmt: skip


def main() -> None:
    """Write the result, or why there is none."""
    part, source, target = sys.argv[1:]
    try:
        result = measure(part, json.loads(Path(source).read_text(encoding="utf-8")))
    except Missing as error:
        result = {"missing": str(error)}
    Path(target).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
