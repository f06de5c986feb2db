"""Engines execute training steps. Here: their interface, the parts that both share, and the plain torch engine.

A step takes micro-batches, each with its weight in the mean over the global batch, so that any number of workers and
any accumulation give the same gradient. `state` and `load_optimizer` use whole float32 tensors by parameter name, so
every engine with any number of workers can read a checkpoint that another one wrote.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.contract import Batch, SequenceModel
from models.errors import UserError
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.process import world
from trainer.training.gradient_sums import sum_gradients
from trainer.training.groups import Groups, load_moments, replicated_state
from trainer.training.row_parts import RowParts
from trainer.training.row_updates import RowUpdates, clip, sparse_tables, sum_rows, values_of
from trainer.training.step_graphs import CudaRecorder, StepGraphs


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite. Raised on every rank; the weights are those from before that step."""


class TrainingPass(nn.Module):
    """The model's loss terms and their weighted sum, under the configured precision.

    bf16 means autocast over float32 weights. It is entered inside `forward`, so that both engines do the same.
    """

    def __init__(self, model: SequenceModel, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (total, terms): the scalar to minimise, and each term, detached."""
        with torch.autocast(batch.history.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.model(batch)
        weights = self.model.loss_weights
        total = torch.stack([weights[name] * value.float() for name, value in terms.items() if name in weights]).sum()
        return total, {name: value.detach().float() for name, value in terms.items()}


class FiniteGuard:
    """Prevents an update if a loss or gradient is not finite on any rank. A hook runs it before the optimizer's step.

    On a CPU it raises at once. On a GPU the device skips this update and all later ones (fused Adam's `found_inf`), so
    the weights stay as they were before the bad step. `check`, called where the host waits anyway, raises the error.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        optimizer.register_step_pre_hook(self._before_update)

    def note(self, total: Tensor) -> None:
        """Remember whether the loss of a micro-batch is finite."""
        self._add(~torch.isfinite(total.detach()))

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        gradients = values_of(p for group in optimizer.param_groups for p in group["params"])
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            self._add(~torch.isfinite(norms).all())
        if world()[1] > 1:
            dist.all_reduce(self._bad, dist.ReduceOp.MAX)
        if self._bad.is_cuda:
            optimizer.found_inf = self._bad
        else:
            self.check()

    def _add(self, bad: Tensor) -> None:
        # in place: a recorded step and the fused optimizer in it know this tensor by its address
        torch.maximum(self._bad, bad.float(), out=self._bad)

    def check(self) -> None:
        """Raise NonFiniteError if any step so far was not finite. Waits for the device."""
        if self._bad.item():
            raise NonFiniteError("a loss or gradient is not finite")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, or AdamW if weight decay is set. Fused: one pass over all parameters, and a GPU can skip an update."""
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def _record_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep learning rates on the device, where a recorded step reads them, and let steps be recorded.

    Also where none is: rates are float32 there, and steps must have the same bits either way.
    """
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = torch.tensor(group["lr"], dtype=torch.float32, device=device), True


@contextlib.contextmanager
def _same_bits(wanted: bool) -> Iterator[None]:
    """Whether the operations of this block must give the same bits each time, on a GPU.

    Otherwise, torch adds some gradients (of embeddings, of selected rows) in an order that varies. Raises UserError: an
    operation that has no form with a fixed order.
    """
    if not wanted:
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        what = str(error).split(", but you set")[0]
        raise UserError(f"{what}; engine.deterministic=false does without") from error
    finally:
        torch.set_deterministic_debug_mode(before)


class Engine(ABC):
    """Executes training steps of one model on one worker."""

    name: str

    def __init__(self, model: SequenceModel, train: TrainConfig, engine: EngineConfig, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._train = train
        # for the whole process, as a backward pass has no other switch; `whole` turns it off, ranking does so, too
        self._products: Literal["high", "highest"] = "high" if engine.precision == "tf32" else "highest"
        torch.set_float32_matmul_precision(self._products)
        self.training_pass = TrainingPass(model, engine.precision)
        self._adam = make_optimizer(model, train)
        self._guard = FiniteGuard(self._adam, device)
        #: what the user should know about how steps are taken; the loop tells it and removes it
        self.remarks: list[str] = []
        self._same_bits = engine.deterministic and device.type == "cuda"  # on a CPU they always are
        if self._same_bits:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch demands it
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the steps from now on. No checkpoint holds it: the schedule gives it for any step."""
        for group in self._adam.param_groups:  # ZeRO replaces the parameters of the groups, not the groups
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def check(self) -> None:
        """Raise NonFiniteError if a step so far was not finite."""
        self._guard.check()

    def step(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        """Do one optimizer update from this rank's (micro-batch, weight) pairs; return its share of each loss term.

        Terms are scalars on the device; their sum over ranks is the mean over the global batch.
        Raises NonFiniteError before the update, unless that means waiting for the device; then `check` raises it.
        """
        with _same_bits(self._same_bits):
            return self._take(batches)

    @abstractmethod
    def _take(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        """See `step`."""

    @abstractmethod
    def state(self) -> Groups:
        """{"model": name -> weight, "optimizer": "name/exp_avg" ... -> moment}: whole float32 tensors on the CPU.

        Collective: every rank calls it. Rank 0 alone gets the tensors, the others get empty groups. Of tables that are
        divided among workers, it has no more than the number of steps; see `parts`.
        """

    def parts(self) -> RowParts | None:
        """What `state` lacks: tables of which each worker holds a share. None where there are none."""
        return None

    @abstractmethod
    def load_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        """Load the optimizer group of `state`. Collective. Load the weights into the model first."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[SequenceModel]:
        """The model with all its parameters gathered, in eval mode, without gradients: for evaluation."""
        training = self.model.training
        self.model.eval()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad():
                yield self.model
        finally:
            torch.set_float32_matmul_precision(self._products)
            self.model.train(training)


def add_terms(sums: dict[str, Tensor], terms: Mapping[str, Tensor], weight: float) -> None:
    """sums += weight * terms, on the device."""
    for name, value in terms.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + weight * value


class TorchEngine(Engine):
    """Plain torch: sums gradients over workers, then Adam. Used without DeepSpeed, and as its reference in tests."""

    name = "torch"

    def __init__(self, model: SequenceModel, train: TrainConfig, engine: EngineConfig, device: torch.device) -> None:
        super().__init__(model, train, engine, device)
        self._tables = sparse_tables(model) if train.lazy_adam else []
        self._divided = model.share is not None
        RowUpdates(self._adam, self._tables)
        self._graphs, self._must = None, engine.cuda_graphs == "always"
        if device.type == "cuda":
            _record_rates(self._adam, device)
        if device.type == "cuda" and world()[1] == 1 and engine.cuda_graphs != "never":
            self._graphs = StepGraphs(model, self._update, CudaRecorder())
        elif self._must:
            raise UserError("engine.cuda_graphs=always needs one worker on a GPU; use engine.cuda_graphs=auto")

    def _take(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        if not self.model.training:  # it asks every part of a model, which takes longer than a graph's launch
            self.model.train()
        if self._graphs is None:
            return self._update(batches)
        terms = self._graphs(batches)
        if self._graphs.unfit is not None:
            if self._must:
                raise UserError(f"engine.cuda_graphs=always, but steps cannot be CUDA graphs: {self._graphs.unfit}")
            self.remarks.append(f"steps are not CUDA graphs: {self._graphs.unfit}")
            self._graphs = None
        return terms

    def _update(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for batch, weight in batches:
            total, terms = self.training_pass(batch)
            self._guard.note(total)
            (total * weight).backward()
            add_terms(sums, terms, weight)
        self._sum_gradients()
        if self._train.clip_norm:
            whole = [p for p in self.model.parameters() if not (self._divided and self._is_table(p))]
            clip(values_of(whole), self._train.clip_norm, values_of(self._tables) if self._divided else ())
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return sums

    def _sum_gradients(self) -> None:
        for table in self._tables:
            if not self._divided:
                sum_rows(table)
            elif table.grad is not None:  # whoever holds a row has its gradient from all workers
                table.grad = table.grad.coalesce()
        if world()[1] == 1:
            return
        dense = []
        for parameter in self.model.parameters():
            if self._is_table(parameter):
                continue
            if parameter.grad is None:  # every rank must take part in every collective
                parameter.grad = torch.zeros_like(parameter)
            dense.append(parameter.grad)
        sum_gradients(dense)

    def _is_table(self, parameter: Tensor) -> bool:
        return any(parameter is table for table in self._tables)

    def state(self) -> Groups:
        return replicated_state(self.model, self._adam)

    def parts(self) -> RowParts | None:
        return RowParts(self.model, self._adam) if self._divided else None

    def load_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        load_moments(self.model, self._adam, moments)
        if self._graphs is not None:
            self._graphs.forget()
