"""What the parts of benchmarks/gpu.py share: the data, and the systems on the device and as a reference in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_common import Settings, synchronise
from bench_models import TableAround, Training, configuration
from bench_synthetic import SIZES, write
from torch import Tensor, nn

from models.contract import SequenceModel
from models.options.base import ContentField
from trainer.batches.loader import Loaded, load
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.training.build import build_model

_DEFAULTS = str(Path(__file__).with_name("defaults.yaml"))

#: what is measured, as `bench_models.configuration` names it
SYSTEMS = ("sasrec", "tedrec", "mealrec-sasrec", "mealrec-tedrec")


class _Float64Table(TableAround):
    """An item table that gives its content in float64."""

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """See ItemTable."""
        return self.inner.gather(field, rows).double()


def _float64(model: SequenceModel) -> SequenceModel:
    """`model` in float64, also where a module's input is made in float32, such as the embedding of a step."""

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for module in model.modules():
        module.register_forward_pre_hook(widen)
    return model.double()


class Lab:
    """Makes data and runs. quick: tiny data in place of the sizes of the paper."""

    def __init__(self, folder: Path, device: torch.device, *, quick: bool) -> None:
        self.folder, self.device, self.quick = folder, device, quick

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes to measure speed at."""
        return ("tiny",) if self.quick else ("small", "big")

    def data(self, size: str) -> Dataset:
        """Random data of a size in `bench_synthetic.SIZES`."""
        folder = self.folder / size
        if not (folder / "manifest.json").exists():
            write(folder, SIZES[size])
        return Dataset.open(folder)

    def config(self, name: str, size: str, *settings: str) -> RunConfig:
        """The configuration of the system `name` for data of that size, with more settings."""
        data = str(self.data(size).root)
        return configuration(Settings(data, _DEFAULTS, settings, self.device.type, 1, 0.0, 1, 0), name)

    def run(self, name: str, size: str, *settings: str) -> Training:
        """That system with its engine, on the device that is measured."""
        config = self.config(name, size, *settings)
        return Training(config, load(self.data(size), self.device, seed=config.seed, loader=config.data.loader))

    def reference(self, name: str, size: str, *settings: str) -> tuple[SequenceModel, Loaded]:
        """That system on the CPU, with weights and content in float64, and its data."""
        config = self.config(name, size, *settings)
        loaded = load(self.data(size), torch.device("cpu"), seed=config.seed)
        model = build_model(config, replace(loaded, table=_Float64Table(loaded.table)))
        assert isinstance(model, SequenceModel)
        return _float64(model), loaded

    def wait(self) -> None:
        """Wait until the device has done everything."""
        synchronise(self.device)
