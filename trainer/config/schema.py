"""The configuration of one training run: typed and frozen; an unknown key or a bad value is refused.

Each part of the program has its own section. The section `model` holds the options of the chosen system, which
models/options checks. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_serializer, model_validator

from models.errors import UserError
from models.options.base import SystemOptions
from models.options.plain import to_plain
from models.registry import nearest
from models.systems import options_of
from retrieval.files import digest
from trainer.config.schedule import ScheduleConfig
from trainer.config.together import check_together
from trainer.evaluation.config import EvalConfig
from trainer.tracking.address import redacted


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """The dataset, and where its rows and content are during training.

    path: a prepared dataset: a folder or a URL; `--data` sets it
    loader: resident keeps content and sequences on the model's device; pinned keeps content in host memory that a GPU
        reads by itself; mmap reads them from memory-mapped files; stream reads training rows from WebDataset shards;
        auto is the first of resident, pinned and mmap that takes at most half of the free memory
    stream_window: number of shards whose rows are shuffled together
    noise: Gaussian noise on the features of the videos, in their deviations, to see how much of it a system bears; an
        item has the same noise wherever it is read
    noise_in: all is training and evaluation; test leaves training and validation without noise
    """

    path: str = ""
    loader: Literal["auto", "resident", "pinned", "mmap", "stream"] = "auto"
    stream_window: int = Field(default=4, ge=1)
    noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    noise_in: Literal["all", "test"] = "all"


class TrainConfig(_Section):
    """How a system is trained.

    epochs: the most epochs
    batch_size: training rows of a step
    batch_per: run counts them over all workers, so that any number of them trains alike; worker gives each worker so
        many (weak scaling: more workers make larger steps, which may need another learning rate)
    learning_rate: step size of Adam, of which `schedule` can make less
    weight_decay: weight decay of AdamW; 0: Adam without it
    patience: training stops after so many validations without a better NDCG@10
    lazy_adam: Adam updates only the rows of item tables that a step reads, so that a step costs the same for a
        catalogue of any size; it needs ranking.negatives and engine.name=torch
    clip_norm: largest norm of the gradient; 0: no limit
    accumulation: micro-batches of a step and worker; more need less memory
    checkpoint_every: steps between checkpoints within an epoch; 0: only at its end
    keep_optimizer: a finished run keeps its optimizer's state (twice its weights) and can go on for more epochs
    """

    epochs: int = Field(default=300, ge=1)
    batch_size: int = Field(default=2048, ge=1)
    batch_per: Literal["run", "worker"] = "run"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: float = Field(default=0.0, ge=0)
    patience: int = Field(default=10, ge=1)
    lazy_adam: bool = False
    clip_norm: float = Field(default=0.0, ge=0)
    accumulation: int = Field(default=1, ge=1, le=1 << 16)
    checkpoint_every: int = Field(default=0, ge=0)
    keep_optimizer: bool = False

    def rate(self, step: int, steps_per_epoch: int, plateaus: int = 0) -> float:
        """The learning rate of a step, from 0, of the run, after so many plateaus of the loss; of nothing else, so that
        a run can resume anywhere.
        """
        return self.learning_rate * self.schedule.share(step, steps_per_epoch, plateaus)

    @model_validator(mode="after")
    def _learns_to_its_end(self) -> TrainConfig:
        if self.schedule.name == "cosine" and self.schedule.epochs < self.epochs:
            raise ValueError(
                f"the learning rate is 0 after epoch {self.schedule.epochs} of {self.epochs}: give "
                f"schedule.epochs={self.epochs} or train.epochs={self.schedule.epochs}"
            )
        return self


class EngineConfig(_Section):
    """The code that executes a step.

    name: auto is DeepSpeed for several workers or a zero_stage, if it is installed; else plain torch, which is faster
        with one worker and gives the same
    device: auto is the GPU where there is one
    precision: tf32 lets a device round the factors of float32 matrix products to 10 bits, as GPUs can; bf16 is autocast
        over weights in fp32
    cuda_graphs: auto takes a step of plain torch on one GPU by one launch, where its system allows it; always
        refuses a system that does not
    deterministic: a step gives the same bits each time on a GPU, too; an operation that cannot is refused
    zero_stage: what DeepSpeed divides among workers: 0 nothing, 1 optimizer states, 2 also gradients, 3 also weights
    item_rows: replicated has all item vectors on each worker; sharded has a part of them and of their optimizer's state
        on each, for catalogues that one GPU or machine does not hold; it needs train.lazy_adam
    """

    name: Literal["auto", "deepspeed", "torch"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    cuda_graphs: Literal["auto", "always", "never"] = "auto"
    deterministic: bool = True
    zero_stage: Literal[0, 1, 2, 3] = 0
    item_rows: Literal["replicated", "sharded"] = "replicated"

    @property
    def gpus(self) -> bool | None:
        """Whether a worker gets a GPU; None: where there are any."""
        return None if self.device == "auto" else self.device == "cuda"

    def choose(self, workers: int) -> Literal["deepspeed", "torch"]:
        """The engine for so many workers on this machine, found without importing it.

        Raises UserError if DeepSpeed is needed and is not installed, or not chosen.
        """
        graphs = self.cuda_graphs == "always"
        if self.name == "deepspeed" and graphs:
            raise UserError("engine.cuda_graphs=always is of engine.name=torch, not of deepspeed")
        wanted = self.name == "deepspeed" or (self.name == "auto" and (workers > 1 or self.zero_stage > 0))
        if wanted and not graphs and importlib.util.find_spec("deepspeed") is not None:
            return "deepspeed"
        if self.name == "deepspeed":
            raise UserError("engine.name=deepspeed, and DeepSpeed is not installed: install it, or leave it at auto")
        if self.zero_stage:
            raise UserError(
                "engine.zero_stage needs DeepSpeed: install it and leave engine.cuda_graphs at auto, "
                "or use engine.zero_stage=0"
            )
        return "torch"


class ClusterConfig(_Section):
    """The processes of a run.

    launcher: ray runs workers under Ray Train; inline runs one worker in this process, as baselines always do
    workers: number of workers; each has a GPU of its own if there are any
    workers_at_least: if nodes are lost, the run goes on with the workers that are left, but with no fewer than these,
        and grows again when there are new nodes; 0: it never goes on with fewer than all
    threads: CPU threads of a worker; 0: the cores of its node divided by the workers there
    max_failures: how many times workers that died are started again from the last checkpoint
    scale_up_s: how long to wait for a cluster's autoscaler to bring the nodes; 0: what is there must do
    """

    launcher: Literal["ray", "inline"] = "ray"
    workers: int = Field(default=1, ge=1, le=1 << 16)
    workers_at_least: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0, le=4096)
    max_failures: int = Field(default=3, ge=0)
    scale_up_s: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _inline_is_one_worker(self) -> ClusterConfig:
        if self.launcher == "inline" and self.workers > 1:
            raise ValueError("launcher inline runs one worker; set cluster.workers=1 or cluster.launcher=ray")
        return self

    @model_validator(mode="after")
    def _at_least_is_no_more(self) -> ClusterConfig:
        if self.workers_at_least > self.workers:
            raise ValueError(f"workers_at_least is {self.workers_at_least}, more than workers, {self.workers}")
        return self


class TrackingConfig(_Section):
    """The mirror of metrics in MLflow.

    mlflow: whether metrics are mirrored to MLflow
    uri: its server or store; empty: MLFLOW_TRACKING_URI, else mlflow.db beside the folder of runs
    experiment: its experiment; empty: MLFLOW_EXPERIMENT_NAME, else mealrec
    """

    mlflow: bool = True
    uri: str = ""
    experiment: str = ""

    @model_validator(mode="after")
    def _no_password(self) -> TrackingConfig:
        if redacted(self.uri) != self.uri:
            raise ValueError(
                "uri holds a user or password, which config.yaml would show; leave them out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give the address by MLFLOW_TRACKING_URI"
            )
        return self


class ModelConfig(BaseModel):
    """name: the system to train. options: all its options, checked, of its class in models/options.

    In YAML both are one section, `{name: sasrec, hidden: 64, ...}`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    options: InstanceOf[SystemOptions]

    @model_validator(mode="before")
    @classmethod
    def _from_section(cls, section: Any) -> Any:
        if not isinstance(section, Mapping) or "name" not in section:
            raise ValueError("give a section with at least a name, e.g. {name: sasrec}")
        name = str(section["name"])
        return {"name": name, "options": options_of(name, {key: section[key] for key in section if key != "name"})}

    @model_serializer
    def _to_section(self) -> dict[str, Any]:
        return {"name": self.name, **to_plain(self.options)}


class RunConfig(_Section):
    """One run: which system, with which options, on which data, and how it is trained, evaluated and tracked.

    model: the system to train; `--model` sets it. Its options are settings, too: `mealrec settings SYSTEM`
    seed: the seed of weights, row order and noise; `--seeds` trains once for each
    """

    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    eval: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = Field(default=2020, ge=0, le=2**63 - 1)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        check_together(self)
        return self

    @property
    def step_rows(self) -> int:
        """Training rows of a step, over all workers."""
        return self.train.batch_size * (self.cluster.workers if self.train.batch_per == "worker" else 1)

    def fingerprint(self) -> str:
        """sha256 of `deciding`; a run is only continued if it is equal."""
        return digest(json.dumps(self.deciding(), sort_keys=True))

    def deciding(self) -> dict[str, Any]:
        """Every setting that decides what is learned, as JSON values in sections.

        Left out: the path of the data (its checksum is compared instead), where the run executes and is tracked, its
        checkpoints, and its number of epochs.
        """
        content = self.model_dump(exclude={"cluster", "tracking", "eval"})
        streamed = self.data.loader == "stream"  # streamed rows come in another order
        content["data"] = {"stream_window": self.data.stream_window} if streamed else {}
        if self.data.noise:
            content["data"] |= {"noise": self.data.noise, "noise_in": self.data.noise_in}
        content["engine"] = {"precision": self.engine.precision}
        content["train"]["batch_size"] = self.step_rows  # whoever counts them
        for free in ("epochs", "checkpoint_every", "keep_optimizer", "batch_per"):
            del content["train"][free]
        return content


def parse(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from nested plain values. Raises UserError that names each wrong key and the nearest valid one."""
    try:
        return RunConfig.model_validate({"model": None, **values})
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """One line per problem: key, what is wrong, nearest valid key."""
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path) or "configuration"
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, UserError) and path[:1] == ["model"]:  # this message already names the option
            lines.append(str(cause))
            continue
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}: {_hint(path)}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(problem["input"], Mapping | BaseModel) else f" (given: {problem['input']!r})"
            lines.append(f"{key}: {message}{shown}")
    return "\n".join(lines)


def _hint(path: list[str]) -> str:
    """The valid key that was meant: one beside it, or of this name in a section, whose name was left out."""
    beside = _siblings(path[:-1])
    if len(path) > 1:
        return nearest(path[-1], beside)
    within = [repr(f"{section}.{path[0]}") for section in beside if path[0] in _siblings([section])]
    hint = f"did you mean {' or '.join(within)}?" if within else nearest(path[0], beside)
    return hint if hint.startswith("did") else f"{hint}; an option of a system is model.{path[0]}"


def _siblings(path: list[str]) -> list[str]:
    """Valid keys of the section at `path`; none where it is no section."""
    cls: Any = RunConfig
    for part in path:
        cls = cls.model_fields[part].annotation
    return list(getattr(cls, "model_fields", ()))
