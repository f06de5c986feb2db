"""Twenty kills at seeded moments, over steps, saves, evaluations and exports: each ends as if there had been none."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_worker import run_command, run_process
from tests.helpers.tiny_runs import make_config
from tests.helpers.training_runs import SETTINGS, assert_same_end, write_config

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


def exported(folder: Path) -> dict[str, Any]:
    """The content of an export, but for when and by which command it was made."""
    card = json.loads((folder / "model.json").read_text())
    del card["provenance"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.json"}
    return {"model.json": card, **files}
