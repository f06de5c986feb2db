"""The files of a run's checkpoints: their names, and which of them a finished run does not need. Needs no torch.

The folder of checkpoints holds:

    step-000000123/         NAME.safetensors for each group of tensors, NAME-part-K-of-N.safetensors for each part of
                            its divided tables, state.json, and manifest.json, written last
    .replaced-000000123/    the old checkpoint of a step, kept while a commit of the same step replaces it
    .tmp-*, .trash-*        checkpoints that are being written or removed; never read
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
#: the two groups of tensors of a run
MODEL, OPTIMIZER = "model", "optimizer"
_FOLDER = re.compile(r"(step-|\.replaced-)(\d{9,})")
_LEFT_OVER = re.compile(r"\.(tmp|trash)-[0-9a-f]{32}")


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return root / f"step-{step:09d}"


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """Steps and folders, highest step first. For one step, the current folder comes before the replaced one."""
    matches = [(path, _FOLDER.fullmatch(path.name)) for path in _entries(root)]
    found = [(int(match[2]), path) for path, match in matches if match]
    return sorted(found, key=lambda entry: (-entry[0], entry[1].name.startswith(".")))


def left_overs(root: Path) -> list[Path]:
    """Folders that interrupted commits and removals left behind."""
    return [path for path in _entries(root) if _LEFT_OVER.fullmatch(path.name)]


def _entries(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.is_dir() else []


@dataclass(frozen=True)
class Progress:
    """How far a run has come, by its newest checkpoint. best_step: -1 before the first validation.

    can_go_on: the checkpoint has the optimizer's state, which the next step needs.
    """

    step: int
    best_step: int
    state: dict[str, Any]
    can_go_on: bool


def read_progress(root: Path) -> Progress | None:
    """What the newest readable checkpoint says, its tensors not looked at; None if there is none."""
    return next((each for step, folder in step_folders(root) if (each := _progress(step, folder))), None)


def _progress(step: int, folder: Path) -> Progress | None:
    try:
        state = json.loads((folder / STATE).read_bytes())
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return Progress(step, int(state["stopping"]["best_step"]), state, OPTIMIZER + TENSORS in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever opens it verifies it, and says what is damaged


def require_nothing_to_do(state: Mapping[str, Any], epochs: int, patience: int, run_dir: Path) -> None:
    """Raise UserError if a run has to train on from a checkpoint with this state, but without the optimizer's."""
    position = state["position"]  # empty for a baseline, which is never trained
    if position and position["epoch"] <= epochs and state["stopping"]["since"] < patience:
        raise UserError(
            f"{run_dir} cannot be trained on after epoch {position['epoch'] - 1}: it keeps its weights, but not the "
            "optimizer's state, which was removed at its end or by `mealrec clean`. Train again under another --name, "
            f"with --set train.epochs={epochs}; add --set train.keep_optimizer=true to keep that state at the end"
        )


def _optimizer_files(folder: Path) -> list[Path]:
    """The state that is whole, and then those of tables in parts, of which nothing is read without it."""
    files = [folder / (OPTIMIZER + TENSORS), *sorted(folder.glob(f"{OPTIMIZER}-part-*{TENSORS}"))]
    return [path for path in files if path.is_file()]


@dataclass(frozen=True)
class Surplus:
    """What of a run's checkpoints is only needed to train on. folders: older checkpoints, and what kills left.

    optimizers: files of optimizer states, of the checkpoints that stay. bytes: of all of them.
    """

    folders: tuple[Path, ...]
    optimizers: tuple[Path, ...]
    bytes: int


def surplus(root: Path, keep: Collection[int]) -> Surplus:
    """All but the weights and states of the steps `keep`."""
    found = step_folders(root)
    # of a step that was being replaced when it was killed, the folder that readers take
    stay = {next((path for step, path in found if step == each), step_folder(root, each)) for each in keep}
    folders = tuple(path for path in (*(path for _, path in found), *left_overs(root)) if path not in stay)
    optimizers = tuple(path for folder in sorted(stay) for path in _optimizer_files(folder))
    files = [*optimizers, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    return Surplus(folders, optimizers, sum(path.stat().st_size for path in files))
