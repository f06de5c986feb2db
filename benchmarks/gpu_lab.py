"""What the parts of benchmarks/gpu.py share: the data, the systems, and a training that can be taken step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_common import synchronise
from bench_synthetic import SIZES, write
from torch import Tensor, nn

from models.contract import Clock, ItemTable, SequenceModel
from models.options.base import ContentField
from trainer.batches.loader import Loaded, load
from trainer.batches.plan import Plan
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.training.build import build_engine, build_model
from trainer.training.engine import TorchEngine

_DEFAULTS = str(Path(__file__).with_name("defaults.yaml"))

#: what is measured, by name: the system, and its settings
SYSTEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sasrec": ("sasrec", ()),
    "tedrec": ("tedrec", ()),
    "mealrec-sasrec": ("mealrec", ("model.backbone=sasrec",)),
    "mealrec-tedrec": ("mealrec", ("model.backbone=tedrec",)),
}


@dataclass
class Run:
    """One system on one dataset, with its engine."""

    config: RunConfig
    loaded: Loaded
    model: SequenceModel
    engine: TorchEngine

    @property
    def plan(self) -> Plan:
        """The plan of its epochs."""
        return Plan(self.loaded.training_rows.count, self.config.train.batch_size)

    def steps(self, first: int, count: int, epoch: int = 1) -> dict[str, Tensor]:
        """Take steps first..first+count, as the training loop does; the loss terms of the last one."""
        plan, terms = self.plan, {}
        for step in range(first, first + count):
            torch.manual_seed(step)
            self.model.clock = Clock(epoch, step)
            shares = plan.share(step % plan.steps, 0, 1, self.config.train.accumulation)
            terms = self.engine.step(
                [(self.loaded.training_rows.batch(epoch, rows), weight) for rows, weight in shares]
            )
        return terms

    def weights(self) -> Tensor:
        """All weights in one float64 vector on the CPU."""
        return torch.cat([p.detach().flatten().cpu().double() for p in self.model.parameters()])


class _Float64Table:
    """An item table that gives its content in float64."""

    def __init__(self, table: ItemTable) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """See ItemTable."""
        return self._table.gather(field, rows).double()


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

    def run(self, name: str, size: str, *settings: str, reference: bool = False) -> Run:
        """A run of `SYSTEMS[name]`, or of the system of that name, with more settings.

        reference: on the CPU, with weights and content in float64.
        """
        system, own = SYSTEMS.get(name, (name, ()))
        sets: Sequence[str] = (*own, *settings, "engine.name=torch")
        config = recipe.load(_DEFAULTS, system, sets, str(self.folder / size))
        device = torch.device("cpu") if reference else self.device
        loaded = load(self.data(size), device, seed=config.seed)
        if reference:
            loaded = replace(loaded, table=_Float64Table(loaded.table))
        model = build_model(config, loaded)
        assert isinstance(model, SequenceModel)
        if reference:
            model = _float64(model)
        engine = build_engine(model, config, device)
        assert isinstance(engine, TorchEngine)
        return Run(config, loaded, model, engine)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        synchronise(self.device)
