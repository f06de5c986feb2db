"""What a finished run does not need of its checkpoints goes. Imports no torch, as `mealrec clean` begins without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UserError
from retrieval.files import write_json
from trainer.training.checkpoint_files import MANIFEST, surplus

if TYPE_CHECKING:
    from trainer.training.checkpoint import CheckpointStore


def keep_weights_only(store: CheckpointStore) -> int:
    """Keep the latest checkpoint and the best one, without optimizer states; return how many bytes that frees.

    For a run that has finished: it can be evaluated and exported, but not trained on. A kill loses no weights.
    Raises UserError if there is no undamaged checkpoint of a validated epoch; nothing is removed then.
    """
    latest, best = store.latest_and_best() or (None, None)
    if latest is None or best is None:
        raise UserError(f"{store.root} has no checkpoint of a validated epoch yet, so all of it is needed")
    goes = surplus(store.root, {latest.step, best.step})
    store.prune({latest.step, best.step})
    for file in goes.optimizers:
        _remove_optimizer(file)
    return goes.bytes


def _remove_optimizer(file: Path) -> None:
    """Remove a checkpoint's optimizer state. A kill between the two steps leaves a file that no reader looks at."""
    path = file.with_name(MANIFEST)
    manifest = json.loads(path.read_bytes())
    if manifest["files"].pop(file.name, None) is not None:
        write_json(path, manifest)
    file.unlink(missing_ok=True)
