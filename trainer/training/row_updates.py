"""Adam for tables of which a step reads few rows: it updates those rows alone (`train.lazy_adam`).

The cost of a step then does not depend on the size of the catalogue. It is not the same as Adam: in a step that does
not read a row, Adam still moves it by its first moment and lets both moments decay; here the row stays as it is until
it is read again ("lazy" Adam, as torch.optim.SparseAdam). Where every step reads all rows, both are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.contract import SequenceModel
from models.errors import UserError
from models.nn.gather import Gather
from trainer.config.catalogue import NO_SAMPLE


def sparse_tables(model: SequenceModel) -> list[Tensor]:
    """The tables to update by rows; their gradients are sparse from now on. Raises UserError: the system has none."""
    tables = model.sparse_tables()
    if not tables:
        raise UserError(NO_SAMPLE)
    return tables


def sum_rows(weight: Tensor) -> None:
    """Make the table's sparse gradient the sum over all workers, each row once. Collective."""
    gradient = weight.grad
    if gradient is None:  # every rank must take part in every collective
        gradient = torch.sparse_coo_tensor(
            torch.zeros(1, 0, dtype=torch.int64, device=weight.device),
            weight.new_zeros(0, weight.shape[1]),
            weight.shape,
            check_invariants=False,
        )
    gather = Gather.of(gradient._nnz(), weight.device)
    with torch.no_grad():
        rows, values = gather(gradient._indices()[0]), gather(gradient._values())
    whole = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=False)
    weight.grad = whole.coalesce()


def values_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that there are; of a sparse one, which must be coalesced, its (n, D) rows, in the same memory."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]


def clip(gradients: list[Tensor], largest: float, divided: Sequence[Tensor] = ()) -> None:
    """Scale gradients in place so that their norm together is at most `largest` (torch's clip_grad_norm_).

    divided: gradients of which each worker has other rows; then it is collective.
    """
    norm = nn.utils.get_total_norm(gradients)
    if divided:
        squares = nn.utils.get_total_norm(divided).square()
        dist.all_reduce(squares)
        norm = (norm.square() + squares).sqrt()
    torch._foreach_mul_([*gradients, *divided], torch.clamp(largest / (norm + 1e-6), max=1.0))


class RowUpdates:
    """Updates the rows that `tables` have gradients for, before `optimizer` updates everything else.

    Moments are where Adam keeps them, with the same names, so checkpoints do not differ. Register it after the guard
    against gradients that are not finite: on a GPU, its `found_inf` leaves the rows as they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tables: Iterable[Tensor]) -> None:
        self._tables = {*tables}
        optimizer.register_step_pre_hook(self._update)

    @torch.no_grad()
    def _update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del args, kwargs
        bad = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight in self._tables and weight.grad is not None:
                    _update_rows(weight, optimizer.state[weight], group, bad)
                    weight.grad = None  # so that the optimizer leaves this parameter alone


def _update_rows(weight: Tensor, state: dict[str, Tensor], group: dict[str, Any], bad: Tensor | None) -> None:
    """Adam (torch's formula) on the rows of a coalesced sparse gradient; nothing where `bad` is 1."""
    if not state:
        state["step"] = torch.zeros((), device=weight.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    gradient = weight.grad
    assert gradient is not None
    row_n, value_nD = gradient._indices()[0], gradient._values()
    first, second = group["betas"]
    state["step"] += 1 if bad is None else 1 - bad
    mean_nD = state["exp_avg"][row_n].lerp_(value_nD, 1 - first)
    square_nD = state["exp_avg_sq"][row_n].mul_(second).addcmul_(value_nD, value_nD, value=1 - second)
    scale = (1 - second ** state["step"]).sqrt()
    change_nD = mean_nD / (square_nD.sqrt() / scale + group["eps"]) * (group["lr"] / (1 - first ** state["step"]))
    for table, new_nD in (
        (state["exp_avg"], mean_nD), (state["exp_avg_sq"], square_nD), (weight, weight[row_n] - change_nD),
    ):  # fmt: skip
        table.index_copy_(0, row_n, new_nD if bad is None else torch.where(bad > 0, table[row_n], new_nD))
