"""The state of a model and its optimizer as whole float32 tensors by name, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.contract import SequenceModel
from models.row_share import RowShare
from trainer.process import world

#: tensors by group ("model", "optimizer") and name
Groups = dict[str, dict[str, Tensor]]
#: what Adam keeps of each parameter, besides its number of steps
MOMENTS = ("exp_avg", "exp_avg_sq")


def divided_tables(model: SequenceModel) -> dict[str, Tensor]:
    """Name -> the tables of which this worker holds a share; {} where it holds all of the model."""
    if model.share is None:
        return {}
    return {name: p for name, p in model.named_parameters() if name.endswith(model.item_rows)}


def parameter_count(model: SequenceModel) -> int:
    """Numbers that the model learns, on all workers together."""
    divided = divided_tables(model)
    whole = sum(getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if name not in divided)
    return whole + sum(model.share.items * table.shape[1] for table in divided.values() if model.share)


def weights_of(model: SequenceModel) -> dict[str, Tensor]:
    """Name -> weight as contiguous float32 tensors on the CPU, without divided tables."""
    divided = divided_tables(model)
    named = ((name, p) for name, p in model.named_parameters() if name not in divided)
    return {name: p.detach().float().cpu().contiguous() for name, p in named}


def replicated_state(model: SequenceModel, optimizer: torch.optim.Optimizer) -> Groups:
    """`Engine.state` where every rank has all that is in it: only rank 0 copies it to the CPU."""
    if world()[0] != 0:
        return {"model": {}, "optimizer": {}}
    return {"model": weights_of(model), "optimizer": moments_of(model, optimizer)}


def moments_of(model: SequenceModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """ "name/exp_avg", "name/exp_avg_sq" and "name/step" of an optimizer over the model's own parameters.

    Of divided tables, "name/step" alone.
    """
    moments: dict[str, Tensor] = {}
    divided = divided_tables(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if name not in divided or key not in MOMENTS:
                moments[f"{name}/{key}"] = value.detach().float().cpu().contiguous()
    return moments


def load_moments(model: SequenceModel, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """The inverse of `moments_of`. Moments of divided tables may be whole, or of this worker's rows alone."""
    for name, parameter in model.named_parameters():
        if f"{name}/step" in moments:
            values = {key: moments[f"{name}/{key}"] for key in ("step", *MOMENTS)}
            for key in MOMENTS:
                values[key] = own_rows(values[key], parameter, model.share)
            optimizer.state[parameter] = {key: x.to(parameter.device, copy=True) for key, x in values.items()}


def own_rows(value: Tensor, like: Tensor, share: RowShare | None) -> Tensor:
    """`value`, or of a whole table the rows of `share`, where the parameter `like` has no more."""
    return share.of(value) if share is not None and len(value) != len(like) else value
