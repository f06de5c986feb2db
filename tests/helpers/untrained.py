"""Systems on a dataset, opened like those of a run but not trained. Their ranks are spread over the whole catalogue."""

from __future__ import annotations

from pathlib import Path

import torch

from models.contract import System
from tests.helpers.tiny_runs import MODELS, RUN
from trainer.batches.loader import Loaded, load
from trainer.config import recipe
from trainer.data.format.dataset import Dataset
from trainer.training.build import build_model

CPU = torch.device("cpu")
Opened = tuple[Loaded, System]


def opened(data: Path, model: str, *settings: str) -> Opened:
    """The loaded dataset, and the system in eval mode with enlarged parameters.

    Initial vectors are near 0. Larger ones give scores that differ so much that rounding does not change the ranking.
    """
    config = recipe.load("demo", model, [*MODELS.get(model, []), *RUN, *settings], str(data))
    loaded = load(Dataset.open(data), CPU, seed=config.seed, loader=config.data.loader)
    built = build_model(config, loaded)
    if isinstance(built, torch.nn.Module):
        built.eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.mul_(3)
    return loaded, built
