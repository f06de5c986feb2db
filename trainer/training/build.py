"""Build the parts of a run from its configuration: the device, the model for its data, its weights, the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contract import Baseline, ModelContext, SequenceModel
from models.errors import UserError
from models.systems import build
from trainer.batches.loader import Loaded
from trainer.config.schema import RunConfig
from trainer.training.engine import Engine, TorchEngine


def choose_device(config: RunConfig) -> torch.device:
    """The device of this worker. Raises UserError if the configuration asks for a GPU and there is none."""
    wanted = config.engine.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def build_model(config: RunConfig, loaded: Loaded) -> SequenceModel | Baseline:
    """The configured system for this data, on its device. Only the seed decides its weights, so all ranks agree."""
    torch.manual_seed(config.seed)
    dataset = loaded.dataset
    titles = dataset.item_titles() if config.model.options.needs_titles else ()
    context = ModelContext(
        loaded.table, dataset.training_interactions(), dataset.manifest.max_length, config.seed,
        dataset.manifest.behaviours, titles,
    )  # fmt: skip
    model = build(config.model.name, config.model.options, context)
    return model if isinstance(model, Baseline) else model.to(loaded.device)


def load_weights(model: SequenceModel, weights: dict[str, Tensor]) -> None:
    """Copy weights of a checkpoint into `model` by name. Every parameter must be in `weights`, with its shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def build_engine(model: SequenceModel, config: RunConfig, device: torch.device) -> Engine:
    """The configured engine; `auto` means DeepSpeed if it is installed, else plain torch."""
    if config.engine.choose() == "torch":
        return TorchEngine(model, config.train, config.engine, device)
    from trainer.training.engine_deepspeed import DeepSpeedEngine  # late: it may be absent, and takes seconds

    return DeepSpeedEngine(model, config.train, config.engine, device)
