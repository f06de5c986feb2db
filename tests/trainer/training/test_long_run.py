"""A long run takes no more memory, open files and disk at its end than near its start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.run_worker import run_process
from tests.helpers.tiny_runs import make_config, make_dataset
from tests.helpers.training_runs import write_config
from trainer.config.schema import RunConfig
from trainer.data.synthetic.generate import SyntheticOptions, generate

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]


def use_by_epoch(config: RunConfig, run_dir: Path) -> list[dict[str, float]]:
    """Train in a process of its own; the memory and open files of each epoch."""
    assert run_process(write_config(config, run_dir), run_dir, timeout=3600) == 0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["metrics"]["process"] for row in rows if row["event"] == "epoch"]


def folder_bytes(run_dir: Path) -> int:
    """Size of the run folder without its metrics, which get a line in each epoch."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name != "metrics.jsonl")
    return sum(path.stat().st_size for path in files)


def assert_flat(use: list[dict[str, float]]) -> None:
    """The first epoch is not counted: it includes first uses of libraries."""
    memory, files = ([epoch[key] for epoch in use[1:]] for key in ("memory_mib", "open_files"))
    print(f"{len(use)} epochs: {memory[0]:.0f} MiB at the 2nd, at most {max(memory):.0f}, at last {memory[-1]:.0f}")
    assert max(memory) < 1.3 * memory[0]
    assert len(set(files)) == 1, f"open files {files}"


def test_200_epochs_of_a_small_run(tmp_path: Path) -> None:
    data, run_dir = make_dataset(tmp_path / "data"), tmp_path / "run"
    settings = ["train.patience=1000", "train.keep_optimizer=true"]
    use_by_epoch(make_config(data, "tedrec", *settings, "train.epochs=20"), run_dir)
    before = folder_bytes(run_dir)
    use = use_by_epoch(make_config(data, "tedrec", *settings, "train.epochs=200"), run_dir)
    assert len(use) == 200
    assert_flat(use[20:])  # the epochs of the resumed process
    assert folder_bytes(run_dir) < 1.5 * before  # one more checkpoint, if the best one is not among the last two


def test_30_epochs_of_a_large_run(tmp_path: Path) -> None:
    """TedRec at its own width of 300."""
    world = SyntheticOptions(
        users=2000, items=3000, topics=40, mean_length=6.3, frames=3, width=64, text_width=64, max_length=10, seed=3
    )
    generate(tmp_path / "data", world)
    size = ["model.hidden=300", "train.batch_size=512", "train.patience=1000", "train.epochs=30"]
    use = use_by_epoch(make_config(tmp_path / "data", "tedrec", *size), tmp_path / "run")
    assert len(use) == 30
    assert_flat(use)
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) <= 4
