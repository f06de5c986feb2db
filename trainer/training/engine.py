"""What executes a training step: the contract, what both engines share, and the engine of plain torch.

A step takes micro-batches with their weights in the mean over the global batch, so that any number of workers and
any accumulation give the same gradient. `state` and `load` move whole float32 tensors by parameter name: a checkpoint
written by one engine, at one world size, is read by every other.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.contract import Batch, SequenceModel
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.process import world

Groups = dict[str, dict[str, Tensor]]
MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite: raised on every rank, before the update of that step."""


class TrainingPass(nn.Module):
    """The model's loss terms and their weighted sum, under the configured precision.

    bf16 is autocast over float32 weights, entered inside of `forward`, so that both engines treat it alike.
    """

    def __init__(self, model: SequenceModel, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, terms): the scalar to minimise, and each detached term."""
        with torch.autocast(batch.history.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.model(batch)
        total = torch.stack([self.model.loss_weights[name] * value.float() for name, value in terms.items()]).sum()
        return total, {name: value.detach().float() for name, value in terms.items()}


class FiniteGuard:
    """Stops an update whose loss or gradient is not finite on any rank, as a hook right before the optimizer's step.

    On a CPU it raises at once. On a GPU the update is skipped on the device (fused Adam's `found_inf`), as is every
    later one, so that the weights stay those before the bad step; `check`, called where the host waits anyway, raises.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        optimizer.register_step_pre_hook(self._before_update)

    def note(self, total: Tensor) -> None:
        """Take the loss of one micro-batch into account."""
        self._bad = torch.maximum(self._bad, (~torch.isfinite(total.detach())).float())

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            self._bad = torch.maximum(self._bad, (~torch.isfinite(norms).all()).float())
        if world()[1] > 1:
            dist.all_reduce(self._bad, dist.ReduceOp.MAX)
        if self._bad.is_cuda:
            optimizer.found_inf = self._bad
        else:
            self.check()

    def check(self) -> None:
        """Raise NonFiniteError if any step up to now was not finite (waits for the device)."""
        if self._bad.item():
            raise NonFiniteError("a loss or gradient is not finite")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (AdamW where weight decay is set), fused: one pass over all parameters, and skippable on the device."""
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


class Engine(ABC):
    """Executes training steps of one model on one worker."""

    name: str

    def __init__(self, model: SequenceModel, train: TrainConfig, engine: EngineConfig, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._train = train
        self.training_pass = TrainingPass(model, engine.precision)

    @abstractmethod
    def step(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        """One optimizer update over this rank's micro-batches and weights; returns this rank's share of each loss term.

        Terms are scalars on the device; their sum over ranks is the mean over the global batch.
        Raises NonFiniteError before the update where it can be known without waiting for the device, else in `check`.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise NonFiniteError if a step up to now was not finite."""

    @abstractmethod
    def state(self) -> Groups:
        """{"model": name -> weight, "optimizer": "name/exp_avg" ... -> moment}, whole, float32, on the CPU.

        Collective: every rank calls it; the answer is complete on rank 0.
        """

    @abstractmethod
    def load_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        """Take over the optimizer group of `state`. Collective. Weights are loaded into the model before."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[SequenceModel]:
        """The model with every parameter present, in eval mode, without gradients: for evaluation and export."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train(training)


def add_terms(sums: dict[str, Tensor], terms: Mapping[str, Tensor], weight: float) -> None:
    """sums += weight * terms, on the device."""
    for name, value in terms.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + weight * value


def weights_of(model: SequenceModel) -> dict[str, Tensor]:
    """Name -> weight as contiguous float32 tensors on the CPU."""
    return {name: p.detach().float().cpu().contiguous() for name, p in model.named_parameters()}


class TorchEngine(Engine):
    """Plain torch: gradients summed over workers, then Adam. For machines without DeepSpeed, and as its reference."""

    name = "torch"

    def __init__(self, model: SequenceModel, train: TrainConfig, engine: EngineConfig, device: torch.device) -> None:
        super().__init__(model, train, engine, device)
        self._optimizer = make_optimizer(model, train)
        self._guard = FiniteGuard(self._optimizer, device)

    def step(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        self.model.train()
        sums: dict[str, Tensor] = {}
        for batch, weight in batches:
            total, terms = self.training_pass(batch)
            self._guard.note(total)
            (total * weight).backward()
            add_terms(sums, terms, weight)
        self._sum_gradients()
        if self._train.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._train.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sums

    def _sum_gradients(self) -> None:
        if world()[1] == 1:
            return
        handles = []
        for parameter in self.model.parameters():
            if parameter.grad is None:  # every rank takes part in every collective
                parameter.grad = torch.zeros_like(parameter)
            handles.append(dist.all_reduce(parameter.grad, async_op=True))
        for handle in handles:
            handle.wait()

    def check(self) -> None:
        self._guard.check()

    def state(self) -> Groups:
        return {"model": weights_of(self.model), "optimizer": moments_of(self.model, self._optimizer)}

    def load_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        load_moments(self.model, self._optimizer, moments)


def moments_of(model: SequenceModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """ "name/exp_avg", "name/exp_avg_sq" and "name/step" of an optimizer over the model's own parameters."""
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = value.detach().float().cpu().contiguous()
    return moments


def load_moments(model: SequenceModel, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """The inverse of `moments_of`."""
    for name, parameter in model.named_parameters():
        if f"{name}/step" in moments:
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device, copy=True) for key in ("step", *MOMENTS)
            }
