"""Open a run folder: its configuration, and its model with the weights of the best checkpoint, on its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cluster import console
from models.contract import Baseline, Moments, SequenceModel
from models.errors import UserError
from models.options.base import ContentField
from trainer.batches.loader import Loaded
from trainer.config import recipe
from trainer.config.identity import check_data, check_saved, other_versions
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.local_path import run_place, runs_beside
from trainer.remote_runs import storage_of
from trainer.training.build import build_model, choose_device, load_data, load_weights
from trainer.training.checkpoint import CheckpointStore

ContentTensors = dict[ContentField, torch.Tensor]


@dataclass(frozen=True)
class Run:
    """A run that was opened: its model, with the weights of the best checkpoint, and the data it was trained on."""

    folder: Path
    config: RunConfig
    loaded: Loaded
    model: SequenceModel | Baseline
    epoch: int


def open_run(folder: Path, data: str | None = None) -> Run:
    """Open the run in `folder`. data: the dataset's path, if it has moved; its content must be the same.

    Raises UserError if there is no run, if an earlier version wrote a configuration that does not fit any more, if
    there is no checkpoint yet, or if the data or the configuration are not those of the checkpoint. Other versions of
    the code or of libraries are a warning.
    """
    _require_run(folder)
    config = recipe.load(str(folder / "config.yaml"), None, [], data)
    store = CheckpointStore(folder / "checkpoints")
    latest, best = store.latest_and_best() or (None, None)
    if latest is None or best is None:
        raise UserError(f"{folder} has no checkpoint of a validated epoch yet; train it first")
    dataset = Dataset.open(config.data.path)
    check_saved(latest.state, config, folder / "config.yaml", "since; bring it back, or take another run")
    check_data(latest.state, dataset.manifest, str(folder), config.data.path, "use --data to say where its data is")
    if changed := other_versions(latest.state):
        console.warn(f"{folder.name} was trained with {changed}; figures may differ")
    device = choose_device(config.engine.device)
    loaded = load_data(dataset, config, device)
    stopping = latest.state["stopping"]
    model = build_model(config, loaded)
    if isinstance(model, SequenceModel):
        load_weights(model, best.tensors["model"])
        model.eval()
    return Run(folder, config, loaded, model, int(stopping["best_epoch"]))


def run_folder(name: str, runs_dir: Path) -> Path:
    """The folder of run `name`; `name` may also be the path of the folder. A run on object storage is brought here.

    Raises UserError, with the nearest name, if there is no run.
    """
    folder = run_place(name, runs_dir)
    if storage := storage_of(folder):
        storage.fetch()
    _require_run(folder)
    return folder


def _require_run(folder: Path) -> None:
    if not (folder / "config.yaml").exists():
        raise UserError(f"there is no run in {folder} (no config.yaml): {runs_beside(folder)}")


def whole_table(
    run: Run,
) -> tuple[ContentTensors, ContentTensors, dict[ContentField, str], dict[ContentField, Moments]]:
    """(values, present, kinds, moments) of the content fields that the run's model needs: all items, in float16."""
    table, rows = run.loaded.table, torch.arange(run.loaded.table.n_items, device=run.loaded.device)
    fields = run.config.model.options.needs
    values: ContentTensors = {field: table.gather(field, rows).half().cpu() for field in fields}
    present: ContentTensors = {field: table.present(field, rows).cpu() for field in fields}
    kinds = {field: table.kinds[field] for field in fields}
    return values, present, kinds, {field: table.moments(field) for field in fields}
