"""Checks before anything starts: each failure is one message that says what is missing and what to do."""

from __future__ import annotations

import ipaddress
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.failures import PreflightError

#: space for the checkpoints and logs of one run; a run is refused if the disk has less
MIN_FREE_BYTES = 1 << 30
#: packages whose versions must be equal on all nodes: results, or the protocol between processes, depend on them
PACKAGES = ("torch", "ray", "deepspeed", "numpy", "polars")
_NODE_TIMEOUT_S = 120.0


def check_folders(run_folder: Path, folders: Sequence[Path]) -> None:
    """Check that this machine can write `run_folder`, read `folders`, and has disk space. Raises PreflightError."""
    for folder in folders:
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            raise PreflightError(f"{folder} is not a folder that can be read; check the path of the data")
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        probe = run_folder / f".probe-{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(run_folder).free
    except OSError as error:
        raise PreflightError(
            f"cannot write to {run_folder}: {error.strerror}; give a folder that can be written"
        ) from error
    if free < MIN_FREE_BYTES:
        raise PreflightError(
            f"the disk of {run_folder} has {free / 1e9:.2f} GB left and a run needs {MIN_FREE_BYTES / 1e9:.1f} GB; "
            "make room or choose another place for runs"
        )


def uses_gpus(wanted: bool | None, total: Mapping[str, float]) -> bool:
    """Whether workers get a GPU each. wanted: None takes GPUs where `total`, e.g. {"GPU": 2.0}, has any.

    What counts is what Ray's nodes have, not this machine: the head of a cluster often has no GPU. Raises
    PreflightError if GPUs are wanted and there is none.
    """
    there = total.get("GPU", 0.0) > 0
    if wanted and not there:
        raise PreflightError("engine.device=cuda, but no node of Ray has a GPU; use engine.device=cpu or auto")
    return there if wanted is None else wanted


def check_resources(workers: int, *, gpus: bool, cpus_per_worker: float, total: Mapping[str, float]) -> None:
    """Check that `total`, e.g. {"CPU": 8.0, "GPU": 2.0}, is enough for the workers. Raises PreflightError."""
    needs = {"CPU": workers * cpus_per_worker, "GPU": float(workers if gpus else 0)}
    for name, need in needs.items():
        have = total.get(name, 0.0)
        if need > have:
            raise PreflightError(
                f"{workers} workers need {need:g} {name}s and the cluster has {have:g}; use fewer workers, add nodes, "
                + ("or give each worker fewer CPUs" if name == "CPU" else "or train on CPUs")
            )


def check_address(host: str, environment: Mapping[str, str], *, what: str = "Ray") -> None:
    """Check that `host` is loopback, or that Ray demands a token there. Raises PreflightError.

    Every server binds to loopback by default. what: the name of the server; only "Ray" can demand a token.
    """
    if is_loopback(host) or (what == "Ray" and environment.get("RAY_AUTH_MODE", "").lower() == "token"):
        return
    if what != "Ray":
        raise PreflightError(f"{what} has no authentication and would be open to strangers at {host}; use 127.0.0.1")
    raise PreflightError(
        f"Ray at {host} takes commands from anybody who can reach it: start the cluster with RAY_AUTH_MODE=token and "
        "set it here too (with the token in ~/.ray/auth_token, see `ray get-auth-token --help`)"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host` (a name, or an address with or without brackets)."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False  # a name: we do not resolve it, but assume that other machines can reach it
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_cluster(
    workers: int, *, gpus: bool, cpus_per_worker: float, run_folder: Path, folders: Sequence[Path]
) -> None:
    """Check the connected cluster: closed to strangers, large enough, nodes that agree. Raises PreflightError.

    Every node must see `run_folder` and `folders` at the same paths, and have the same `versions`.
    """
    import ray

    address: str = ray.get_runtime_context().gcs_address
    check_address(address.rpartition(":")[0], os.environ)
    check_resources(workers, gpus=gpus, cpus_per_worker=cpus_per_worker, total=ray.cluster_resources())
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node["NodeID"] != here]
    if others:
        _check_storage(run_folder)
        _check_nodes(others, run_folder, folders)


def _check_storage(run_folder: Path) -> None:
    if any(part.startswith("_ray_pkg_") for part in run_folder.parts):
        raise PreflightError(
            f"{run_folder} is inside the job's own copy of the working directory, which Ray deletes; "
            "give runs and data as absolute paths on storage that all nodes share"
        )


def _check_nodes(nodes: Sequence[Mapping[str, Any]], run_folder: Path, folders: Sequence[Path]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = run_folder / f".shared-{secrets.token_hex(8)}"
    token.write_text(socket.gethostname(), encoding="utf-8")
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(look_around)
        paths = [str(path) for path in (token, *folders)]
        answers, here = {}, versions()
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[node["NodeManagerAddress"]] = look.options(scheduling_strategy=strategy).remote(paths)
        for host, answer in answers.items():
            compare_node(host, _answer(host, answer), paths, here)
    finally:
        token.unlink(missing_ok=True)


def _answer(host: str, reference: Any) -> dict[str, Any]:
    import ray

    try:
        answer: dict[str, Any] = ray.get(reference, timeout=_NODE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise PreflightError(f"node {host} did not answer: {str(error)[:500]}") from error
    return answer


def look_around(paths: Sequence[str]) -> dict[str, Any]:
    """Runs on a node. Returns the paths that it does not see, its free disk space at the first path, its versions."""
    missing = [path for path in paths if not Path(path).exists()]
    folder = Path(paths[0]).parent
    free = shutil.disk_usage(folder).free if folder.exists() else 0
    return {"missing": missing, "free": free, "versions": versions()}


def compare_node(host: str, seen: Mapping[str, Any], paths: Sequence[str], here: Mapping[str, str]) -> None:
    """Refuse a node that does not see `paths`, or that has other versions than `here`. Raises PreflightError."""
    if seen["missing"]:
        missing = ", ".join(str(Path(p).parent) if p == paths[0] else p for p in seen["missing"])
        raise PreflightError(
            f"node {host} does not see {missing}; runs and data must be "
            "on storage that every node mounts at the same path"
        )
    if seen["free"] < MIN_FREE_BYTES:
        raise PreflightError(f"node {host} has {seen['free'] / 1e9:.2f} GB of disk left for the run; make room")
    different = [
        f"{name} {seen['versions'].get(name)} (here {own})"
        for name, own in here.items()
        if seen["versions"].get(name) != own
    ]
    if different:
        raise PreflightError(f"node {host} has other versions: {', '.join(different)}; use one image on all nodes")


def versions() -> dict[str, str]:
    """Versions that must be equal on all nodes: Python (major and minor) and PACKAGES ("none" if not installed)."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
