"""The first checkpoint of a run that goes on from another one, on data that have grown since.

Rows of items and users are found again by their raw ids; new ones begin as in a new run, and so does what the other run
had no weights for. The optimizer's moments of kept rows are kept where the other run has them still
(`train.keep_optimizer`); else the optimizer begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.contract import SequenceModel
from models.errors import UserError
from trainer.config.identity import identity
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.data.known_rows import KnownRows
from trainer.training.checkpoint import CheckpointStore
from trainer.training.checkpoint_files import MODEL, OPTIMIZER
from trainer.training.checkpoint_reading import Checkpoint
from trainer.training.groups import MOMENTS, Groups, weights_of
from trainer.training.loop import Position
from trainer.training.stopping import EarlyStopping


def carried(model: SequenceModel, before: Checkpoint, rows: KnownRows) -> tuple[Groups, list[str]]:
    """Weights and moments for `model`, a new one for the grown data, from the checkpoint `before`; and in words what
    of it could not be kept.

    Raises UserError where a parameter has another shape than before, which rows do not explain.
    """
    told = []
    weights, moments = {}, {}
    old, old_moments = before.tensors[MODEL], before.tensors.get(OPTIMIZER, {})
    for name, fresh in weights_of(model).items():
        if name not in old:
            told.append(f"{name} is new, and begins anew")
            weights[name] = fresh
            continue
        source = _source(model, name, rows)
        weights[name] = _placed(old[name], fresh, source, name)
        if f"{name}/step" in old_moments:
            moments[f"{name}/step"] = old_moments[f"{name}/step"]
            for key in MOMENTS:
                moment = old_moments[f"{name}/{key}"]
                moments[f"{name}/{key}"] = _placed(moment, torch.zeros_like(fresh), source, name)
    if gone := sorted(old.keys() - weights.keys()):
        told.append(f"weights that this data has no use for: {', '.join(gone)}")
    if not moments:
        told.append("the optimizer begins anew, because the run keeps no moments (train.keep_optimizer)")
    return {MODEL: weights, OPTIMIZER: moments}, told


def begin(run_dir: Path, config: RunConfig, dataset: Dataset, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the checkpoint of step 0 with these tensors, from which training goes on. Raises UserError: a full disk."""
    state = {
        "position": asdict(Position()), "stopping": EarlyStopping(config.train.patience).state(),
        **identity(config, dataset.manifest),
    }  # fmt: skip
    CheckpointStore(run_dir / "checkpoints").commit(0, tensors, state)


def _source(model: SequenceModel, name: str, rows: KnownRows) -> Tensor | None:
    """For each row of a parameter its row before, -1 for none; None if its rows are neither items nor users."""
    if name.endswith(model.item_rows):
        return torch.from_numpy(rows.items)
    return torch.from_numpy(rows.users) if name.endswith(model.user_rows) else None


def _placed(old: Tensor, fresh: Tensor, source: Tensor | None, name: str) -> Tensor:
    if old.shape[1:] != fresh.shape[1:] or (source is None and old.shape != fresh.shape):
        raise UserError(
            f"{name} was {tuple(old.shape)} and would be {tuple(fresh.shape)} for the new data, so its weights cannot "
            "be kept; train a new run on the data"
        )
    if source is None:
        return old.clone()
    assert len(source) == len(fresh)
    placed, kept = fresh.clone(), source >= 0
    placed[kept] = old[source[kept]]
    return placed
