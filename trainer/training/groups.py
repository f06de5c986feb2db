"""The state of a model and its optimizer as whole float32 tensors by name, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.contract import SequenceModel
from trainer.process import world

#: tensors by group ("model", "optimizer") and name
Groups = dict[str, dict[str, Tensor]]
#: what Adam keeps of each parameter, besides its number of steps
MOMENTS = ("exp_avg", "exp_avg_sq")


def weights_of(model: SequenceModel) -> dict[str, Tensor]:
    """Name -> weight as contiguous float32 tensors on the CPU."""
    return {name: p.detach().float().cpu().contiguous() for name, p in model.named_parameters()}


def replicated_state(model: SequenceModel, optimizer: torch.optim.Optimizer) -> Groups:
    """`Engine.state` where every rank has all weights and moments: only rank 0 copies them to the CPU."""
    if world()[0] != 0:
        return {"model": {}, "optimizer": {}}
    return {"model": weights_of(model), "optimizer": moments_of(model, optimizer)}


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
