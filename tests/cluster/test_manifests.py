"""The manifests and the Dockerfile against what the program needs. (No Kubernetes cluster and no Docker run here.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from trainer.cli import parser_of
from trainer.config import recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/manifests"
JOBS = sorted(FOLDER.glob("*.yaml"))
GPU = "nvidia.com/gpu"
pyproject = (ROOT / "pyproject.toml").read_text()
dockerfile = (FOLDER / "Dockerfile").read_text()


@pytest.fixture(params=JOBS, ids=lambda path: path.name)
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(request.param.read_text())
    assert (parsed["apiVersion"], parsed["kind"]) == ("ray.io/v1", "RayJob")
    return parsed


def cluster_of(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return spec


def pods_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def command_of(job: dict[str, Any]) -> Any:
    """The parsed arguments of the entrypoint, and its configuration."""
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/trainer/run.py")
    assert (ROOT / "trainer/run.py").is_file()
    args = parser_of("train").parse_args(arguments)
    return args, recipe.load(args.recipe, args.model, args.settings, args.data)


def test_there_are_two() -> None:
    assert [path.name for path in JOBS] == ["rayjob-autoscaling.yaml", "rayjob.yaml"]


def test_the_head_has_no_gpu_and_no_workers(job: dict[str, Any]) -> None:
    head = cluster_of(job)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for container in head["template"]["spec"]["containers"]:
        assert GPU not in {**container["resources"]["requests"], **container["resources"]["limits"]}


def test_ray_demands_a_token(job: dict[str, Any]) -> None:
    assert cluster_of(job)["authOptions"] == {"mode": "token"}


def test_the_version_of_ray_is_ours_everywhere(job: dict[str, Any]) -> None:
    version = cluster_of(job)["rayVersion"]
    needed = Requirement(re.search(r'"(ray\[[^"]*)"', pyproject)[1])  # type: ignore[index]
    assert needed.specifier.contains(version)
    assert f"rayproject/ray:{version}-py311-gpu\n" in dockerfile
    assert f"]=={version}" in dockerfile


def test_pods_have_one_image_one_storage_and_what_they_ask_for(job: dict[str, Any]) -> None:
    args, _ = command_of(job)
    for pod in pods_of(cluster_of(job)):
        (container,) = pod["containers"]
        assert f"-t {container['image']} .\n" in dockerfile
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        for path in (args.data, str(args.runs_dir)):
            assert path.startswith("/shared/")


def test_the_workers_fit(job: dict[str, Any]) -> None:
    _, config = command_of(job)
    cluster = cluster_of(job)
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits[GPU]) * group["maxReplicas"] >= config.cluster.workers
    assert int(limits["cpu"]) >= 2  # a worker, and Ray Train's controller beside one of them
    if group["minReplicas"] < config.cluster.workers:
        assert cluster["enableInTreeAutoscaling"] is True
        assert config.cluster.scale_up_s >= 300  # a node with a GPU takes minutes
        assert config.engine.device == "cuda"  # without a node nothing says that there are GPUs
    else:
        assert "enableInTreeAutoscaling" not in cluster


def test_a_job_is_not_started_twice_by_kubernetes(job: dict[str, Any]) -> None:
    assert job["spec"]["backoffLimit"] == 0  # the run folder is there: only --resume goes on with it


def test_the_dockerfile_copies_what_is_there_and_all_of_it() -> None:
    copied = [word for line in re.findall(r"^COPY --chown=\S+ (.*) \S+$", dockerfile, re.M) for word in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"include = \[(.*)\]", pyproject)[1]  # type: ignore[index]
    assert {name.strip(' "*') for name in packages.split(",")} <= set(copied)
    stubs = re.search(r"for package in (.*?);", dockerfile)[1]  # type: ignore[index]
    assert set(stubs.split()) == {name.strip(' "*') for name in packages.split(",")}
    extras = re.findall(r"EXTRAS=([\w,]+)", dockerfile)
    assert len(extras) == 2
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", pyproject, re.M), extra
