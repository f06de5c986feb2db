"""A run folder, read back: its configuration, its best checkpoint, the model on its data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from models.contract import Baseline, SequenceModel
from models.errors import UserError
from models.options.base import ContentField
from trainer.batches.loader import Loaded, load
from trainer.config import recipe
from trainer.config.identity import check_configuration, check_data, other_versions
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.training.build import build_model, choose_device, load_weights
from trainer.training.checkpoint import CheckpointStore

ContentTensors = dict[ContentField, torch.Tensor]


@dataclass(frozen=True)
class Run:
    """The best checkpoint of a run, in its model, on the data that it was trained on."""

    folder: Path
    config: RunConfig
    loaded: Loaded
    model: SequenceModel | Baseline
    epoch: int


def open_run(folder: Path, data: str | None = None) -> Run:
    """Open `folder`; `data` replaces the dataset's recorded path (it may have moved, its content may not differ).

    Raises UserError: no run there, a run of an earlier version whose configuration does not fit, no checkpoint yet,
    other data or another configuration than the checkpoint was made with. Other versions are a warning.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds no run (no config.yaml); give the name or folder of a run that was trained")
    config = recipe.load(str(folder / "config.yaml"), None, [], data)
    store = CheckpointStore(folder / "checkpoints")
    latest, best = store.latest_and_best() or (None, None)
    if latest is None or best is None:
        raise UserError(f"{folder} has no checkpoint of a validated epoch yet; train it first")
    dataset = Dataset.open(config.data.path)
    what = f"{folder / 'config.yaml'} has changed since; bring it back, or take another run"
    check_configuration(latest.state, config, str(folder), what)
    check_data(latest.state, dataset.manifest, str(folder), config.data.path, "give its data by --data")
    if changed := other_versions(latest.state):
        print(f"warning: {folder.name} was trained with {changed}; figures may differ", file=sys.stderr)
    device = choose_device(config)
    loaded = load(dataset, device, seed=config.seed, loader=config.data.loader, window=config.data.stream_window)
    stopping = latest.state["stopping"]
    model = build_model(config, loaded)
    if isinstance(model, SequenceModel):
        load_weights(model, best.tensors["model"])
        model.eval()
    return Run(folder, config, loaded, model, int(stopping["best_epoch"]))


def run_folder(name: str, runs_dir: Path) -> Path:
    """The folder of run `name`, which may be a path itself."""
    return Path(name) if Path(name).is_dir() else runs_dir / name


def whole_table(run: Run) -> tuple[ContentTensors, ContentTensors, dict[ContentField, str]]:
    """(values, present, kinds) of the content fields that the run's model needs, for every item, in float16."""
    table, rows = run.loaded.table, torch.arange(run.loaded.table.n_items, device=run.loaded.device)
    fields = run.config.model.options.needs
    values: ContentTensors = {field: table.gather(field, rows).half().cpu() for field in fields}
    present: ContentTensors = {field: table.present(field, rows).cpu() for field in fields}
    return values, present, {field: table.kinds[field] for field in fields}
