"""The whole benchmark on tiny random data: every part gives figures, or says which package is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_report import number
from benchmark import against_recbole, ratios

OPTIONAL = ("ray", "deepspeed", "webdataset", "mlflow", "faiss")
WITHOUT = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL} and name not in sys.modules:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Finder())
"""


def run(out: Path, *arguments: str, pythonpath: str = "") -> tuple[dict[str, Any], str]:
    """The JSON and the Markdown report of `benchmark.py --quick`; both have the same dated name."""
    done = subprocess.run(
        [sys.executable, "benchmarks/benchmark.py", "--quick", "--device", "cpu", "--out", str(out), *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": pythonpath}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (page,) = out.glob("*.md")
    assert page.name.startswith("20")
    return json.loads(page.with_suffix(".json").read_text()), page.read_text()


def positive(values: dict[str, Any], *keys: str) -> None:
    """Assert that each of these is a number above zero."""
    assert {key: values[key] for key in keys if not values[key] > 0} == {}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("on_ray_head")
def test_every_part_has_numbers(tmp_path: Path) -> None:
    result, page = run(tmp_path, "--models", "tedrec", "mealrec-tedrec")
    assert list(result["models"]) == ["tedrec", "mealrec-tedrec"]
    for model in result["models"].values():
        positive(model["training"], "rows_per_s", "epoch_cpu_s", "epoch_wall_s")
        positive(model["evaluation"], "users_per_s")
        positive(model["step"], "loader_share")
        # each model has its own process: torch alone needs more than 100 MB, four models together far less than 4000 MB
        assert 100 < model["memory"]["training"]["rss_mb"] <= model["memory"]["all"]["rss_mb"] < 4000
    assert result["models"]["mealrec-tedrec"]["options"]["backbone"] == "tedrec"
    # one direct and one chained use of each denoiser
    assert len(result["models"]["mealrec-tedrec"]["evaluation"]["ways"]) == 4
    for loader in ("resident", "mmap", "stream"):
        positive(result["loaders"][loader], "rows_per_s", "rows_with_content_per_s")
    for kind in ("items", "rows"):
        positive(result["shards"][kind], "write_mb_per_s", "read_mb_per_s")
    for kind in ("exact", "flat", "ivf", "hnsw"):
        positive(result["retrieval"][kind], "users_per_s", "recall@20")
    assert result["retrieval"]["flat"]["recall@20"] == 1
    assert 0 < result["ray"]["first_step_s"] <= result["ray"]["whole_call_s"]
    positive(result["ratios"]["mealrec-tedrec/tedrec"], "wall_s", "cpu_s")
    assert "not installed" not in page.partition("## Models")[2]
    assert "failed" not in page


@pytest.mark.long
def test_what_is_not_installed_is_reported(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT)
    result, page = run(tmp_path / "out", "--models", "sasrec", pythonpath=str(site))
    positive(result["models"]["sasrec"]["training"], "rows_per_s")
    positive(result["loaders"]["mmap"], "rows_per_s")
    positive(result["retrieval"]["exact"], "users_per_s")
    for part, missing in (
        (result["loaders"]["stream"], "webdataset"), (result["shards"], "webdataset"),
        (result["retrieval"]["hnsw"], "faiss"), (result["ray"], "ray"),
    ):  # fmt: skip
        assert part == {"missing": f"{missing} not installed"}
        assert f"{missing} not installed" in page


def test_an_unmeasured_source_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/benchmark.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--data DIR" in done.stderr


def measured(batch: int, wall: float, cpu: float) -> dict[str, Any]:
    """The figures of a model's part that ratios are computed from."""
    return {
        "batch_size": batch,
        "training": {"step": {"wall_s": wall, "cpu_s": cpu}, "epoch_cpu_s": 10 * cpu, "epoch_wall_s": 10 * wall},
    }


def test_ratios_need_equal_batches() -> None:
    models = {
        "tedrec": measured(8, 2.0, 1.0),
        "mealrec-tedrec": measured(8, 3.0, 1.2),
        "mealrec-sasrec": measured(4, 1, 1),
    }
    assert ratios(models) == {"mealrec-tedrec/tedrec": {"wall_s": 1.5, "cpu_s": 1.2}}
    assert ratios({"mealrec-tedrec": models["mealrec-tedrec"], "tedrec": {"failed": "x"}}) == {}


def test_recbole_is_compared_by_medians_and_doubts_are_named(tmp_path: Path) -> None:
    reference = {
        "timing": {"epochs": [{"cpu_s": c, "wall_s": c} for c in (8.0, 90.0, 10.0)]},
        "data": {"manifest_sha256": "a"}, "threads": 1, "options": {"train_batch_size": 2048},
        "started": "then", "environment": {"cpu": "there"},
    }  # fmt: skip
    path = tmp_path / "recbole.json"
    path.write_text(json.dumps(reference))
    result = {"models": {"sasrec": measured(2048, 0.3, 0.2)}, "data": {"manifest_sha256": "b"}, "threads": 1}
    found = against_recbole(path, result)
    assert (found["ours_cpu_s"], found["recbole_cpu_s"], found["cpu_ratio"]) == (2.0, 10.0, 0.2)
    assert (found["same_data"], found["same_threads"]) == (False, True)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.01234, "0.0123"), (12.34, "12.3"), (999.4, "999"), (1234567.8, "1,234,568")]
)
def test_numbers_for_people(value: float | None, shown: str) -> None:
    assert number(value) == shown
