"""Fixtures that several test files use."""

from __future__ import annotations

import ast
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from models.nn.layout import Layout

# on a busy machine an example may wait for a core
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Ray gives its processes a low priority (15): beside other tests they would hardly run
os.environ.setdefault("RAY_worker_niceness", "0")

HERE = Path(__file__).parent
#: the slowest other files, slowest first: they start first, so that no worker runs one of them alone at the end
LONGEST = (
    "trainer/training/test_engines.py", "trainer/training/test_loop.py", "trainer/tracking/test_mirror_server.py",
    "trainer/tracking/test_mirror.py", "trainer/training/test_engines_systems.py", "models/learns/test_content.py",
    "models/learns/test_ssdrec.py", "models/learns/test_m3bsr.py", "models/test_every_system.py",
    "trainer/extract/video/test_encoders.py", "trainer/commands/test_examples.py", "models/learns/test_diqdiff.py",
    "models/learns/test_dmmd4sr.py", "models/learns/test_mmgcn.py", "trainer/training/test_checkpoint_readers.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    # those with Ray first: Ray reads settings when it is imported, which other tests do without them
    items.sort(key=lambda item: -1 if item.get_closest_marker("ray") else places.get(item.path, len(LONGEST)))


def need_ray(root: Path) -> Iterator[str]:
    """Ids of the tests that are marked `ray`, without parameters. (pytest-xdist tells its scheduler no marks.)"""
    for path in HERE.rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        functions = ast.parse(text).body if "mark.ray" in text else []
        for node in functions:
            if isinstance(node, ast.FunctionDef) and "pytest.mark.ray" in map(ast.unparse, node.decorator_list):
                yield f"{path.relative_to(root).as_posix()}::{node.name}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As with `--dist loadfile`, the tests of a file run on one worker; but all that need Ray on one and the same.

    They share a head there, and no two Rays run at once. (`--dist loadgroup` has no effect with pytest 9 and
    pytest-xdist 3.8.)
    """
    from xdist.scheduler import LoadFileScheduling

    ray = {*need_ray(config.rootpath)}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.partition("[")[0] in ray else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # in the order of collection, see LONGEST
    return Scheduling(config, log)


@pytest.fixture
def padded_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models keep the padding of batches, as on a GPU."""
    of = Layout.of
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch, pack=False: of(batch, pack)))


@pytest.fixture(params=["packed", "padded"])
def layouts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test twice: with packed batches as on a CPU, and with padding as on a GPU."""
    of, pack = Layout.of, request.param == "packed"
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s of numbers (tests/helpers/clips.py), 25 frames and a key frame each second."""
    from tests.helpers.clips import number_clip  # not every test needs av

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    number_clip(path, frames=250, gop=25, bframes=2)
    return path


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store of MLflow with all its tables. Copy it, because making the tables takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        path = tmp_path_factory.mktemp("store") / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def ray_head() -> Iterator[dict[str, str]]:
    """Environment variables for one Ray head. All tests that need Ray and do not kill it share this head.

    Ray (2.60) reads the token of a process once, when it connects first, so this process has one token for all Rays.
    """
    from cluster import head

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with head.running(cpus=4) as where:
        yield {**where.environment, "RAY_ADDRESS": where.address}
        mark = where.mark
    assert head.processes_of(mark) == []
    assert not Path(head.PLACE, mark).exists()


@pytest.fixture
def on_ray_head(ray_head: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run this test's jobs on the shared head."""
    for name, value in ray_head.items():
        monkeypatch.setenv(name, value)
