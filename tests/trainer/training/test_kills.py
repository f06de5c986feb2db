"""Kills at seeded moments, over steps, saves, evaluations, exports and workers: each ends as if there had been none."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.run_worker import run_command, run_process, run_world
from tests.helpers.tiny_runs import make_config
from tests.helpers.training_runs import SETTINGS, STEPS, assert_same_end, lines, write_config
from trainer.training.checkpoint import CheckpointStore

SEED, EACH = 11, 5


@pytest.mark.long
def test_twenty_kills_of_twenty_change_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL right before a seeded event: 5 steps, 5 file operations of saves, 5 rankings, 5 moments of an export."""
    config, rng = make_config(data, "sasrec", *SETTINGS), random.Random(SEED)
    events = json.loads((whole / "events.json").read_text())
    kills = [(kind, rng.randint(1, events[kind])) for kind in ("step", "save", "evaluation") for _ in range(EACH)]
    for number, kill in enumerate(kills):
        run_dir = tmp_path / f"{number}"
        assert run_process(write_config(config, run_dir), run_dir, kill) == -signal.SIGKILL, kill
        assert run_process(config, run_dir) == 0, kill
        assert_same_end(whole, run_dir)
    command = ["export", "--run", str(whole), "--out"]
    assert run_command([*command, str(tmp_path / "whole")], tmp_path / "output")[0] == 0
    undisturbed = exported(tmp_path / "whole")
    for number in range(EACH):
        out, kill = tmp_path / f"export-{number}", ("export", rng.randint(1, 4))
        killed = run_command([*command, str(out)], tmp_path / "output", kill, signal.SIGKILL)
        assert killed[0] == -signal.SIGKILL, (kill, killed)
        assert not out.exists(), kill
        assert run_command([*command, str(out)], tmp_path / "output")[0] == 0, kill
        assert exported(out) == undisturbed, kill
        kills.append(kill)
    assert not list(tmp_path.glob(".export-*")), "what killed exports left is removed by the next one"
    print(f"{len(kills)} kills of {len(kills)} changed nothing (seed {SEED}): {kills}")


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 4])
def test_a_killed_rank_of_several_changes_nothing_once_resumed(data: Path, tmp_path: Path, world: int) -> None:
    """Any rank, at its steps, saves and rankings; the run is resumed with as many workers."""
    config, rng = make_config(data, "sasrec", *SETTINGS, "train.epochs=2"), random.Random(SEED)
    run_world(write_config(config, tmp_path / "whole"), tmp_path / "whole", world)
    kills = [(rng.randrange(world), "step", rng.randint(1, 16)) for _ in range(2)]
    kills += [(0, "save", rng.randint(8, 60)), (rng.randrange(world), "evaluation", 1)]
    for number, kill in enumerate(kills):
        run_dir = tmp_path / f"{number}"
        run_world(write_config(config, run_dir), run_dir, world, kill)
        run_world(config, run_dir, world)
        assert_same_end(tmp_path / "whole", run_dir)
    print(f"{len(kills)} kills of {len(kills)} at {world} workers changed nothing (seed {SEED}): {kills}")


@pytest.mark.long
def test_a_run_goes_on_with_other_numbers_of_workers(data: Path, tmp_path: Path) -> None:
    """Begun by 1 worker, resumed by 4 and then by 2, killed in between: without dropout the same up to rounding."""
    still = [f"model.{name}=0.0" for name in ("attention_dropout", "hidden_dropout")]
    config = make_config(data, "sasrec", *SETTINGS, *still)
    run_world(write_config(config, tmp_path / "whole"), tmp_path / "whole", 1)
    run_dir = tmp_path / "run"
    run_world(write_config(config, run_dir), run_dir, 1, (0, "step", 11))
    run_world(config, run_dir, 4, (3, "step", 9))
    run_world(config, run_dir, 2)
    one, two = (CheckpointStore(run / "checkpoints").latest() for run in (tmp_path / "whole", run_dir))
    assert one is not None
    assert two is not None
    assert one.step == two.step == STEPS
    for name, value in one.tensors["model"].items():
        assert torch.allclose(value, two.tensors["model"][name], rtol=1e-4, atol=1e-5), name
    losses = [
        [row["metrics"]["loss"]["ranking"] for row in lines(run) if row["event"] == "epoch"]
        for run in (tmp_path / "whole", run_dir)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def exported(folder: Path) -> dict[str, Any]:
    """The content of an export, but for when and by which command it was made."""
    card = json.loads((folder / "model.json").read_text())
    del card["provenance"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.json"}
    return {"model.json": card, **files}
