"""Whether a run can go on from a checkpoint: the same configuration and data, and all that its next step needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.identity import check_configuration, check_data, other_versions
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import Manifest
from trainer.text_files import read_yaml
from trainer.training.checkpoint_files import OPTIMIZER, require_nothing_to_do
from trainer.training.checkpoint_reading import Checkpoint


def check_resumable(checkpoint: Checkpoint, config: RunConfig, manifest: Manifest, run_dir: Path) -> str | None:
    """Raise UserError unless `checkpoint` was made with the same configuration and data, and has what is needed.

    Returns which versions differ now, in words; None if none does.
    """
    what = f"{_difference(run_dir, config)}. Use another --name, or the settings in its config.yaml"
    check_configuration(checkpoint.state, config, str(run_dir), what)
    check_data(checkpoint.state, manifest, str(run_dir), config.data.path, "use another --name")
    if OPTIMIZER not in checkpoint.tensors:
        require_nothing_to_do(checkpoint.state, config.train.epochs, config.train.patience, run_dir)
    return other_versions(checkpoint.state)


def _difference(run_dir: Path, config: RunConfig) -> str:
    path = run_dir / "config.yaml"
    saved = read_yaml(path) if path.exists() else {}
    now = config.model_dump(mode="json")
    changes = [f"{key} was {old!r}, is {new!r}" for key, old, new in _leaves(saved, now, "")]
    return "; ".join(changes[:5]) or "see config.yaml"


def _leaves(old: Any, new: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [x for key in {**old, **new} for x in _leaves(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [(prefix.rstrip("."), old, new)]
