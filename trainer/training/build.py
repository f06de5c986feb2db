"""Build the parts of a run from its configuration: the device, the model for its data, its weights, the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.contract import Baseline, ModelContext, SequenceModel
from models.errors import UserError
from models.row_share import RowShare
from models.systems import build
from trainer.batches.loader import Loaded, load
from trainer.batches.noisy_table import NoisyTable
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.data.format.splits import Split
from trainer.process import out_of_memory, world
from trainer.training.engine import Engine, TorchEngine
from trainer.training.groups import own_rows

if TYPE_CHECKING:
    from trainer.training.engine_deepspeed import DeepSpeedEngine


def choose_device(wanted: str) -> torch.device:
    """The device of this process. wanted: "cpu", "cuda", or "auto" for a GPU where torch sees one.

    Raises UserError if a GPU is wanted and torch sees none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def load_data(dataset: Dataset, config: RunConfig, device: torch.device) -> Loaded:
    """What a run reads of its dataset, as it is configured; with `data.noise`, unless that is of the test alone."""
    loaded = load(dataset, device, seed=config.seed, loader=config.data.loader, window=config.data.stream_window)
    return _disturbed(loaded, config) if config.data.noise_in == "all" else loaded


def _disturbed(loaded: Loaded, config: RunConfig) -> Loaded:
    """The same with `data.noise` on the videos."""
    if not config.data.noise:
        return loaded
    return replace(loaded, table=NoisyTable(loaded.table, config.data.noise, config.seed))


def build_model(config: RunConfig, loaded: Loaded) -> SequenceModel | Baseline:
    """The configured system for this data, on its device. Only the seed decides its weights, so all ranks agree."""
    torch.manual_seed(config.seed)
    dataset = loaded.dataset
    titles = dataset.item_titles() if config.model.options.needs_titles else ()
    context = ModelContext(
        loaded.table, dataset.training_interactions(), dataset.manifest.max_length, config.seed,
        dataset.manifest.behaviours, titles, row_share(config, dataset.manifest.items),
    )  # fmt: skip
    with _told_of_memory(config.model.name):
        model = build(config.model.name, config.model.options, context)
        return model if isinstance(model, Baseline) else model.to(loaded.device)


def row_share(config: RunConfig, items: int) -> RowShare | None:
    """The rows of item tables that this process holds, as it is configured: of `items` items and padding; None: all."""
    rank, size = world()
    return RowShare(rank, size, items + 1) if config.engine.item_rows == "sharded" and size > 1 else None


@contextmanager
def _told_of_memory(name: str) -> Iterator[None]:
    """Memory that is refused while the model is made: UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"{name} with these options does not fit into memory ({str(error).splitlines()[0][-100:]}); make it "
            f"smaller: of its options (`mealrec settings {name}`) widths and numbers of layers need most"
        ) from None


def as_tested(
    model: SequenceModel | Baseline, loaded: Loaded, config: RunConfig, split: Split
) -> tuple[SequenceModel | Baseline, Loaded]:
    """The model and the data as they are evaluated on `split`: with `data.noise` where it is on the test targets alone.

    Then the model is another one with the same weights, since a model may keep what it has read of the content.
    """
    if split != "test" or config.data.noise_in != "test" or not config.data.noise:
        return model, loaded
    noisy = _disturbed(loaded, config)
    shown = build_model(config, noisy)
    if isinstance(shown, SequenceModel) and isinstance(model, SequenceModel):
        load_weights(shown, {name: value.detach() for name, value in model.named_parameters()})
        shown.eval()
    shown.inference = model.inference
    return shown, noisy


def load_weights(model: SequenceModel, weights: dict[str, Tensor]) -> None:
    """Copy weights of a checkpoint into `model` by name. Every parameter must be in `weights`, with its shape.

    Tables that are divided among workers may be whole, or have this worker's rows alone.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(own_rows(weights[name], parameter, model.share))


def build_engine(model: SequenceModel, config: RunConfig, device: torch.device) -> Engine:
    """The configured engine; see `EngineConfig.choose`."""
    if config.engine.choose(config.cluster.workers) == "torch":
        return TorchEngine(model, config.train, config.engine, device)
    return import_deepspeed_engine(device)(model, config.train, config.engine, device)


def import_deepspeed_engine(device: torch.device) -> type[DeepSpeedEngine]:
    """Import DeepSpeed, which may not be installed and takes seconds, for models on `device`.

    Without DS_ACCELERATOR in the environment DeepSpeed would choose the accelerator by what the machine has, and not by
    the device that the user chose.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with _hidden("mlflow"):  # of DeepSpeed's autotuner, which we do not use: 3.7 of the 5.1 CPU s of this import
        from trainer.training.engine_deepspeed import DeepSpeedEngine

        return DeepSpeedEngine


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """In this block a module that is not loaded yet cannot be imported, as if it were not installed."""
    loaded = module in sys.modules
    if not loaded:
        sys.modules[module] = None  # type: ignore[assignment]  # Python's mark for this
    try:
        yield
    finally:
        if not loaded:
            del sys.modules[module]
