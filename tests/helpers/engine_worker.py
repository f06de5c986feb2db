"""The processes of `test_engines`: each runs jobs on an engine, as one rank of a gloo world."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import Batch, ModelContext, Moments, SequenceModel, TrainingInteractions
from models.options.base import ContentField
from models.systems import build, options_class, options_of
from models.tensor_table import TensorTable
from tests.helpers.tiny_runs import MODELS, joined, run_ranks
from trainer.batches.plan import Plan, Rows
from trainer.config.recipe import nest
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.training.build import import_deepspeed_engine
from trainer.training.engine import Engine, NonFiniteError, TorchEngine
from trainer.training.groups import Groups

ITEMS, LENGTH = 40, 6
PLAN = Plan(263, 130)  # steps of 130, 130 and 3 rows: fewer than there are shares
HALF, STEPS = 2, 4
#: another learning rate in every step
TRAIN = TrainConfig.model_validate({"epochs": 2, "schedule": {"name": "cosine", "epochs": 2, "warmup": 1}})
BAD_STEP = 1
#: three items per user; here each user is one training row
INTERACTIONS = TrainingInteractions(3 * torch.arange(PLAN.rows + 1), 1 + torch.arange(3 * PLAN.rows) * 7 % (ITEMS - 1))
OPTIONS: dict[str, Any] = {
    "backbone": "sasrec", "steps": 5, "tcd": {"channels": (16, 32), "dropout": 0.0}, "npd": {"dropout": 0.0},
    "sasrec": {"hidden": 8, "inner": 8, "layers": 1, "attention_dropout": 0.0, "hidden_dropout": 0.0},
}  # fmt: skip
Spoil = Literal["", "features", "gradient", "loss"]


@dataclass(frozen=True)
class Job:
    """`system`: MealRec with OPTIONS, or another with the settings of `tests.helpers.tiny_runs`.

    `load`: name of a job whose half-way state this one loads. `spoil`: what becomes `value` in step BAD_STEP.
    unused: leave out TCD, so that some parameters never get a gradient. steps: number of steps without `load`.
    keep: which states are written, see `state_of`; with ZeRO, gathering a state takes longer than the steps.
    """

    name: str
    engine: Literal["torch", "deepspeed"] = "torch"
    stage: int = 0
    accumulation: int = 1
    precision: str = "fp32"
    clip: float = 0.0
    load: str = ""
    spoil: Spoil = ""
    value: float = 0.0
    unused: bool = False
    steps: int = STEPS
    system: str = "mealrec"
    keep: tuple[str, ...] = ("half", "before", "end")


def run_jobs(folder: Path, world: int, jobs: list[Job]) -> None:
    """Run `jobs`, one after the other, on `world` processes that end with the call."""
    run_ranks(_rank, world, folder, f"{world}-{jobs[0].name}", [asdict(job) for job in jobs], timeout=240)


def losses_of(folder: Path, name: str) -> list[list[float]]:
    """Loss terms of each step, means over the global batch."""
    found: list[list[float]] = json.loads((folder / f"{name}.losses.json").read_text())
    return found


def state_of(folder: Path, name: str, when: str = "end") -> Groups:
    """`engine.state()` of rank 0 at the end, half-way ("half"), or before the bad step ("before")."""
    groups: Groups = {"model": {}, "optimizer": {}}
    for key, value in load_file(folder / f"{name}.{when}.safetensors").items():
        group, _, rest = key.partition(":")
        groups[group][rest] = value
    return groups


def raised(folder: Path, name: str, world: int) -> list[bool]:
    """For each rank, whether the bad step raised NonFiniteError."""
    return [json.loads((folder / f"{name}.{rank}.raised.json").read_text()) for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, mark: str, jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    with joined(rank, world, folder / f"{mark}.store"):
        for job in jobs:
            _run(folder, Job(**job), rank, world)


def _run(folder: Path, job: Job, rank: int, world: int) -> None:
    table = _table()
    engine = _engine(folder, job, table)
    losses = []
    for step in range(HALF if job.load else 0, job.steps):
        if step == HALF and not job.load and "half" in job.keep:
            _save(folder / f"{job.name}.half.safetensors", engine.state(), rank)
        if job.spoil and step == BAD_STEP:
            _save(folder / f"{job.name}.before.safetensors", engine.state(), rank)
            _spoil(job, engine.model, table, rank == world - 1)
            (folder / f"{job.name}.{rank}.raised.json").write_text(json.dumps(_raises(engine, job, step, rank, world)))
            break
        losses.append(_step(engine, job, step, rank, world))
    if "end" in job.keep:
        _save(folder / f"{job.name}.end.safetensors", engine.state(), rank)
    if rank == 0:
        (folder / f"{job.name}.losses.json").write_text(json.dumps(losses))


def _step(engine: Engine, job: Job, step: int, rank: int, world: int) -> list[float]:
    engine.set_learning_rate(TRAIN.rate(step, PLAN.steps))
    shares = PLAN.share(step % PLAN.steps, rank, world, job.accumulation)
    terms = engine.step([(_batch(rows), weight) for rows, weight in shares])
    # figures without a weight, such as shares of the variance of a batch, depend on how rows are divided
    values = torch.stack([terms[name] for name in sorted(terms) if name in engine.model.loss_weights])
    if world > 1:
        dist.all_reduce(values)
    return [float(value) for value in values]


def _raises(engine: Engine, job: Job, step: int, rank: int, world: int) -> bool:
    try:
        _step(engine, job, step, rank, world)
    except NonFiniteError:
        return True
    return False


def _engine(folder: Path, job: Job, table: TensorTable) -> Engine:
    torch.manual_seed(0)
    context = ModelContext(table, INTERACTIONS, LENGTH, seed=1)
    model = build(job.system, options_of(job.system, _options(job)), context)
    assert isinstance(model, SequenceModel)
    state = state_of(folder, job.load, "half") if job.load else None
    if state is not None:
        model.load_state_dict(state["model"], strict=False)
    train = TrainConfig(accumulation=job.accumulation, clip_norm=job.clip)
    config = EngineConfig.model_validate({"zero_stage": job.stage, "precision": job.precision})
    engine: Engine
    if job.engine == "torch":
        engine = TorchEngine(model, train, config, torch.device("cpu"))
    else:
        cpu = torch.device("cpu")
        engine = import_deepspeed_engine(cpu)(model, train, config, cpu)
    if state is not None:
        engine.load_optimizer(state["optimizer"])
    return engine


def _options(job: Job) -> dict[str, Any]:
    """Options without dropout, whose masks depend on how rows are divided among workers."""
    if job.system == "mealrec":
        return {**OPTIONS, "use_tcd": not job.unused}
    drops = {field.name: 0.0 for field in fields(options_class(job.system)) if field.name.endswith("dropout")}
    small: dict[str, Any] = nest(MODELS[job.system])["model"]
    return drops | small


def _spoil(job: Job, model: SequenceModel, table: TensorTable, mine: bool) -> None:
    """Spoil the content of an item in every process, or the gradient or loss of one rank."""
    if job.spoil == "features":
        item = _batch(PLAN.positions(BAD_STEP))
        table._fields["sequence"][item.history[-1, item.length[-1] - 1]] = job.value
    elif job.spoil == "gradient" and mine:
        embedding = model.get_submodule("backbone.item_embedding")
        embedding.register_forward_hook(lambda *args: args[2].register_hook(lambda g: g * job.value) and None)
    elif job.spoil == "loss" and mine:
        model.loss_weights = {**model.loss_weights, "ranking": job.value}


def _save(path: Path, state: Groups, rank: int) -> None:
    if rank == 0:
        save_file({f"{group}:{name}": t for group, named in state.items() for name, t in named.items()}, path)


def _table() -> TensorTable:
    generator = torch.Generator().manual_seed(0)
    content: dict[ContentField, Tensor] = {
        "sequence": torch.randn(ITEMS, 3, 8, generator=generator),
        "visual": torch.randn(ITEMS, 8, generator=generator),
        "text": torch.randn(ITEMS, 6, generator=generator),
        "visual_layers": torch.randn(ITEMS, 3, 8, generator=generator),
        "text_layers": torch.randn(ITEMS, 3, 8, generator=generator),
    }
    moments = {name: Moments(torch.zeros(x.shape[-1]), torch.ones(x.shape[-1])) for name, x in content.items()}
    return TensorTable(ITEMS, content, {name: torch.arange(ITEMS) > 3 for name in content}, {}, moments)


def _batch(positions: Rows) -> Batch:
    generator = torch.Generator().manual_seed(5)
    length = torch.randint(1, LENGTH + 1, (PLAN.rows,), generator=generator)
    history = torch.randint(1, ITEMS, (PLAN.rows, LENGTH), generator=generator)
    history = history * (torch.arange(LENGTH) < length[:, None])
    target: Tensor = torch.randint(1, ITEMS, (PLAN.rows,), generator=generator)
    rows = torch.from_numpy(positions)
    return Batch(
        rows, history[rows], length[rows], target[rows], rows, torch.zeros_like(history[rows], dtype=torch.uint8)
    )
