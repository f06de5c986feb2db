"""Speed and memory of one model: training, evaluation, and where the time of a step goes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from bench_common import (
    Missing,
    Result,
    Settings,
    choose_device,
    memory_mb,
    rate,
    repeated,
    summary,
    synchronise,
    timed,
)
from torch import Tensor

from models.contract import Clock, ItemTable, SequenceModel
from models.errors import UserError
from models.options.base import ContentField
from trainer.batches.loader import Loaded
from trainer.batches.plan import Plan
from trainer.config import recipe
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.evaluation.evaluate import evaluate
from trainer.training.build import build_engine, build_model, load_data

_WARM_UP_STEPS = 3
_PROBED_STEPS = 3
_PROBED_USERS = 256
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_NO_KERNELS = ("aten::", "cuda", "cu", "Optimizer", "autograd::")  # what the profiler lists besides kernels
_LONGEST = 12


class Stopwatch:
    """Seconds spent inside of it, the device's work included, while it is `on`."""

    def __init__(self, device: torch.device) -> None:
        self.on, self.seconds, self._device = False, 0.0, device

    def __enter__(self) -> None:
        if self.on:
            synchronise(self._device)
            self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.on:
            synchronise(self._device)
            self.seconds += time.perf_counter() - self._started


class TableAround:
    """An item table that is `inner` in all that a subclass does not change."""

    def __init__(self, inner: ItemTable) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WatchedTable(TableAround):
    """An item table whose reads are timed."""

    def __init__(self, inner: ItemTable, watch: Stopwatch) -> None:
        super().__init__(inner)
        self._watch = watch

    def gather(self, field: ContentField, rows: Tensor) -> Tensor:
        """See ItemTable."""
        with self._watch:
            return self.inner.gather(field, rows)

    def present(self, field: ContentField, rows: Tensor) -> Tensor:
        """See ItemTable."""
        with self._watch:
            return self.inner.present(field, rows)


class Training:
    """Training steps as `trainer.training.loop` takes them, through as many epochs as are needed."""

    def __init__(self, config: RunConfig, loaded: Loaded) -> None:
        self.batches, self.content = Stopwatch(loaded.device), Stopwatch(loaded.device)
        self.config = config
        self.loaded = replace(loaded, table=WatchedTable(loaded.table, self.content))
        model = build_model(config, self.loaded)
        assert isinstance(model, SequenceModel), "a baseline is not trained"
        self.model = model
        self.engine = build_engine(self.model, config, loaded.device)
        self.plan = Plan(loaded.training_rows.count, config.train.batch_size)
        self.done = 0
        self.sums: dict[str, Tensor] = {}

    def run(self, steps: int) -> None:
        """Take `steps` steps."""
        for _ in range(steps):
            epoch, step = divmod(self.done, self.plan.steps)
            torch.manual_seed(self.done)
            self.model.clock = Clock(epoch + 1, self.done)
            micro = []
            for positions, weight in self.plan.share(step, 0, 1, self.config.train.accumulation):
                with self.batches:
                    micro.append((self.loaded.training_rows.batch(epoch + 1, positions), weight))
            for name, value in self.engine.step(micro).items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.done += 1

    def rows_in(self, steps: int) -> int:
        """Rows of the last `steps` steps (the last batch of an epoch is smaller)."""
        return sum(len(self.plan.positions(s % self.plan.steps)) for s in range(self.done - steps, self.done))


def configuration(settings: Settings, name: str) -> RunConfig:
    """The recipe for the system `name`, or "mealrec-BACKBONE"; engine torch, whatever is installed."""
    system, _, backbone = name.partition("-") if name.startswith("mealrec-") else (name, "", "")
    own = (f"model.backbone={backbone}",) if backbone else ()
    return recipe.load(settings.recipe, system, (*own, *settings.settings, "engine.name=torch"), settings.data)


def prepare(settings: Settings, name: str) -> Training:
    """Data, model and engine of the model measured as `name`."""
    config, device = configuration(settings, name), choose_device(settings.device)
    loaded = load_data(Dataset.open(settings.data), config, device)
    try:
        return Training(config, loaded)
    except UserError as error:  # the data lacks what this system is made of
        raise Missing(str(error)) from error


def model(settings: Settings, name: str) -> Result:
    """Everything about one model. Peaks of memory are those of this process: run it in one of its own."""
    empty = memory_mb(choose_device(settings.device))
    training = prepare(settings, name)
    device = training.loaded.device
    result: Result = {
        "system": name, "device": device.type, "placement": training.loaded.placement,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "batch_size": training.config.train.batch_size, "precision": training.config.engine.precision,
        "options": training.config.model.model_dump(),
    }  # fmt: skip
    result["training"] = _train(training, settings, device)
    result["memory"] = {"before": empty, "training": memory_mb(device)}
    result["step"] = _step(training, device)
    training.engine.check()
    result["evaluation"] = _evaluate(training, settings, device)
    result["memory"]["all"] = memory_mb(device)
    return result


def _train(training: Training, settings: Settings, device: torch.device) -> Result:
    """Medians over windows of whole epochs, or of the consecutive steps that the budget allows."""
    training.run(_WARM_UP_STEPS)
    steps = training.plan.steps
    if not settings.epochs:
        step = timed(lambda: training.run(_PROBED_STEPS), device)["wall_s"] / _PROBED_STEPS
        steps = max(1, min(steps, int(settings.seconds / settings.repeats / max(step, 1e-4))))
    windows = settings.epochs or settings.repeats
    measured, per_row = [], []
    for _ in range(windows):
        seconds = timed(lambda: training.run(steps), device)
        rows = training.rows_in(steps)
        measured.append({key: value / steps for key, value in seconds.items()})
        per_row.append({key: value / rows for key, value in seconds.items()})
    row, total = summary(per_row), training.plan.rows
    return {
        "rows_per_s": 1 / max(row["wall_s"], 1e-9), "epoch_cpu_s": row["cpu_s"] * total,
        "epoch_wall_s": row["wall_s"] * total, "train_rows": total, "epoch_steps": training.plan.steps,
        "measured_steps": steps, "step": summary(measured),
    }  # fmt: skip


def _step(training: Training, device: torch.device) -> Result:
    """Share of a step that waits for data, with the device made to finish each part; kernels launched on a GPU."""
    steps = max(_PROBED_STEPS, min(20, training.plan.steps))
    training.batches.on = training.content.on = True
    seconds = timed(lambda: training.run(steps), device)["wall_s"]
    training.batches.on = training.content.on = False
    batches, content = training.batches.seconds, training.content.seconds
    return {
        "loader_share": batches / max(seconds, 1e-9), "content_share": content / max(seconds, 1e-9),
        "loader_ms": 1e3 * batches / steps, "content_ms": 1e3 * content / steps,
        # no launch at all: the profiler cannot see the device here
        "kernel_launches": (profiled(training, device)["launches"] or None) if device.type == "cuda" else None,
    }  # fmt: skip


def profiled(training: Training, device: torch.device) -> Result:
    """One step on a GPU, its loader included: kernels launched, their milliseconds, and those that take longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        training.run(1)
        synchronise(device)
    events = seen.key_averages()
    kernels = [event for event in events if not event.key.startswith(_NO_KERNELS)]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    longest = [[e.key[:70], e.count, round(e.self_device_time_total / 1e3, 3)] for e in kernels[:_LONGEST]]
    return {
        "launches": sum(event.count for event in events if event.key.startswith(_LAUNCHES)),
        "gpu_ms": sum(event.self_device_time_total for event in kernels) / 1e3, "longest": longest,
    }  # fmt: skip


def _evaluate(training: Training, settings: Settings, device: torch.device) -> Result:
    """Users/s of ranking validation targets, for every way that the model has of encoding users."""
    ways: dict[str, Any] = {}
    with training.engine.whole() as whole:
        for way in whole.inference_choices:
            whole.inference = way
            ways[way] = _evaluate_way(training, settings, device)
    first = next(iter(ways))
    return {"way": first, **ways[first], "ways": {way: found["users_per_s"] for way, found in ways.items()}}


def _evaluate_way(training: Training, settings: Settings, device: torch.device) -> Result:
    loaded, config = training.loaded, training.config.eval
    total = loaded.dataset.manifest.users
    probe = _first_users(loaded, min(total, _PROBED_USERS))
    evaluate(training.model, probe, "validation", config)
    once = timed(lambda: evaluate(training.model, probe, "validation", config), device)["wall_s"]
    fits = int(_PROBED_USERS * settings.seconds / settings.repeats / max(once, 1e-4))
    users = min(total, max(_PROBED_USERS, fits))
    part = _first_users(loaded, users)
    times = repeated(lambda: evaluate(training.model, part, "validation", config), settings, device)
    return {"users_per_s": rate(users, times["wall_s"]), "users": users, **times}


def _first_users(loaded: Loaded, users: int) -> Loaded:
    """The same data with only the first users to evaluate."""
    dataset = loaded.dataset
    manifest = dataset.manifest.model_copy(update={"users": users})
    offsets, row_offsets = dataset.offsets[: users + 1], dataset.row_offsets[: users + 1]
    return replace(loaded, dataset=replace(dataset, manifest=manifest, offsets=offsets, row_offsets=row_offsets))
