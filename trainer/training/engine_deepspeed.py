"""The DeepSpeed engine: ZeRO stages 0-3 over Ray Train's process group. The only file that imports deepspeed.

Import it by `build.import_deepspeed_engine`, which tells DeepSpeed the device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from torch import Tensor

from cluster import console
from models.contract import Batch, SequenceModel
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.process import world
from trainer.training.engine import Engine, NonFiniteError, add_terms
from trainer.training.groups import MOMENTS, Groups, load_moments, replicated_state


class DeepSpeedEngine(Engine):
    """Gradients, optimizer states and weights partitioned over workers by the configured ZeRO stage."""

    name = "deepspeed"

    def __init__(self, model: SequenceModel, train: TrainConfig, engine: EngineConfig, device: torch.device) -> None:
        super().__init__(model, train, engine, device)
        _join_process_group(device)
        self._stage = engine.zero_stage
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.training_pass, optimizer=self._adam, config=self._settings(train), dist_init_required=False
        )
        if device.type == "cuda" and world()[1] == 1 and not engine.zero_stage:
            self.remarks.append("on one GPU, engine.name=torch takes steps as CUDA graphs, which is faster")

    def _settings(self, train: TrainConfig) -> dict[str, Any]:
        return {
            # DeepSpeed only checks that these sizes fit each other; the plan decides the real sizes
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": train.accumulation,
            "gradient_clipping": train.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": self._stage},
            "steps_per_print": 2**31,
        }

    def _take(self, batches: Sequence[tuple[Batch, float]]) -> dict[str, Tensor]:
        self._engine.train()
        sums: dict[str, Tensor] = {}
        # undo DeepSpeed's division by micro-batches and workers: the weights are already shares of the global mean
        scale = len(batches) * world()[1]
        for batch, weight in batches:
            total, terms = self._engine(batch)
            self._guard.note(total)
            self._engine.backward(total * (weight * scale))
            self._engine.step()
            add_terms(sums, terms, weight)
        if getattr(self._optimizer, "overflow", False):  # ZeRO noticed it before the guard, and skipped the update
            raise NonFiniteError("a gradient is not finite")
        return sums

    @contextlib.contextmanager
    def whole(self) -> Iterator[SequenceModel]:
        parameters = list(self.model.parameters()) if self._stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters, enabled=self._stage == 3), super().whole() as model:
            yield model

    def state(self) -> Groups:
        if self._stage == 0:
            return replicated_state(self.model, self._optimizer)
        self._link_states()
        steps = {float(state["step"]) for state in self._flat_states()}
        assert len(steps) <= 1, "all partitions take every step"
        groups: Groups = {"model": {}, "optimizer": {}}
        for name, parameter in self.model.named_parameters():
            groups["model"][name] = _whole(safe_get_full_fp32_param(parameter), parameter)
            for key in MOMENTS if steps else ():
                groups["optimizer"][f"{name}/{key}"] = _whole(safe_get_full_optimizer_state(parameter, key), parameter)
            for step in steps:
                groups["optimizer"][f"{name}/step"] = torch.tensor(step)
        return groups

    def load_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        if self._stage == 0:
            return load_moments(self.model, self._optimizer, moments)
        done = next(moment for name, moment in moments.items() if name.endswith("/step"))
        for flat in self._flat_parameters():  # make the empty states that ZeRO itself makes only at its first step
            state = {key: torch.zeros_like(flat.data) for key in MOMENTS}
            state["step"] = done.to(flat.device, copy=True)
            self._optimizer.optimizer.state[flat] = state
        self._link_states()
        for name, parameter in self.model.named_parameters():
            for key in MOMENTS:
                # plain torch keeps no moments of a parameter that never had a gradient
                moment = moments.get(f"{name}/{key}", torch.zeros(_shape(parameter)))
                safe_set_full_optimizer_state(parameter, moment.to(self.device), key)
        return None

    def _flat_parameters(self) -> list[Tensor]:
        """ZeRO's flat float32 partitions on this rank."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _flat_states(self) -> list[dict[str, Tensor]]:
        states = (self._optimizer.optimizer.state.get(flat) for flat in self._flat_parameters())
        return [state for state in states if state]

    def _link_states(self) -> None:
        """Map parameters to optimizer states in stages 1 and 2, which cannot do so before the states exist."""
        if self._stage < 3 and self._flat_states():
            self._optimizer._lazy_init_hp_params_optimizer_state()


def _whole(value: Tensor, parameter: Tensor) -> Tensor:
    return value.detach().float().cpu().reshape(_shape(parameter)).contiguous().clone()


def _shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter, even if this rank holds only a part of it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _join_process_group(device: torch.device) -> None:
    """Use the process group that Ray Train made; without one, make a group of one worker."""
    logging.getLogger("DeepSpeed").setLevel(console.library_level(logging.WARNING))
    # Turn off a shared-memory operation: compiling it at first use takes half a minute, and it changes no result. By a
    # table of our own, because DeepSpeed runs a compiler for a second to fill its table, of which it reads only this.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    # DeepSpeed itself uses the old names of collectives that torch renamed
    warnings.filterwarnings("ignore", message=".*torch.distributed.*_tensor. is deprecated", category=FutureWarning)
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
