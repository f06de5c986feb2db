"""What a study will cost on this machine, from steps that are measured here before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from models.contract import Baseline
from trainer.batches.plan import Plan
from trainer.config.schema import RunConfig
from trainer.data.format.dataset import Dataset
from trainer.evaluation.evaluate import evaluate
from trainer.progress import Progress
from trainer.study.trials import Trial
from trainer.training.build import build_model, choose_device, load_data
from trainer.training.engine import TorchEngine

#: measured of each system
STEPS = 3
#: checkpoints of a run that trains (the latest, the one before, the best), and tensors of each beside the weights
_CHECKPOINTS, _OPTIMIZER = 3, 2
#: evaluations at the end of a run: validation and test, for each way of encoding users
_LAST = 2


@dataclass(frozen=True)
class Cost:
    """Of one run. seconds: with all its epochs, so an upper bound where training stops early. peak_bytes: on the disk
    while it trains; final_bytes: afterwards."""

    seconds: float
    peak_bytes: int
    final_bytes: int


def measure(trials: Iterable[Trial]) -> dict[str, Cost]:
    """The cost of each trial by name; one trial is measured for each label without its factors, system and dataset."""
    measured: dict[tuple[str, ...], Cost] = {}
    costs = {}
    trials = list(trials)
    keys = {trial.name: _key(trial) for trial in trials}
    progress = Progress("measuring steps", len(set(keys.values())))
    for trial in trials:
        key = keys[trial.name]
        if key not in measured:
            measured[key] = _of_one(trial.config)
            progress.update(len(measured))
        costs[trial.name] = measured[key]
    progress.close()
    return costs


def _key(trial: Trial) -> tuple[str, ...]:
    words = [value for value in trial.factors.values() if isinstance(value, str)]  # names: numbers cost about the same
    return (trial.system, trial.label.partition("=")[0], trial.dataset, *words)


def _of_one(config: RunConfig) -> Cost:
    dataset = Dataset.open(config.data.path)
    device = choose_device(config.engine.device)
    loaded = load_data(dataset, config, device)
    model = build_model(config, loaded)
    if isinstance(model, Baseline):
        seconds = _LAST * _seconds(lambda: evaluate(model, loaded, "validation", config.eval), device)
        return Cost(seconds, 0, 0)
    engine = TorchEngine(model, config.train, config.engine, device)
    plan = Plan(loaded.training_rows.count, config.step_rows)

    def step(number: int) -> None:
        rows = plan.positions(number % plan.steps)
        engine.step([(loaded.training_rows.batch(1, rows), 1.0)])

    step(0)  # the first one makes the optimizer's state and chooses kernels
    times = [_seconds(partial(step, number), device) for number in range(1, STEPS + 1)]
    epoch = float(np.median(times)) * plan.steps
    with engine.whole() as whole:
        ranking = _seconds(lambda: evaluate(whole, loaded, "validation", config.eval), device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    seconds = config.train.epochs * (epoch + ranking) + _LAST * len(model.inference_choices) * ranking
    peak, final = _CHECKPOINTS * (1 + _OPTIMIZER) * weights, 2 * weights
    return Cost(seconds, peak, final * (1 + _OPTIMIZER) if config.train.keep_optimizer else final)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
