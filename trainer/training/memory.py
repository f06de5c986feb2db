"""Whether a run's tables of items fit into memory: told before the first step, and not by the system's killer."""

from __future__ import annotations

import os

import torch

from models.errors import UserError
from trainer.batches.loader import host_memory_available
from trainer.config.catalogue import table_width
from trainer.config.schema import RunConfig

_GB = 1e9
#: tables in float32 beside the weights: Adam's two moments, and the vectors of all items in an evaluation
_WEIGHTS, _MOMENTS, _EVALUATION = 1, 2, 1


def check_tables(config: RunConfig, items: int, users: int, device: torch.device) -> None:
    """Raise UserError if the tables of `items` rows need more memory than is free on `device`. Call it before they are
    made. The index with which so many users are evaluated is counted; all else (activations, content) is not.
    """
    width = table_width(config.model.options)
    table = 4 * items * width
    gradient = 0 if config.train.lazy_adam else 1
    # ZeRO divides the moments from stage 1 on, gradients from 2, weights from 3
    stage, workers = config.engine.zero_stage, config.cluster.workers
    divided = [1 if stage < least else workers for least in (3, 1, 2)]
    sharded = _sharers(config)
    parts = [share / by for share, by in zip((_WEIGHTS, _MOMENTS, gradient), divided, strict=True)]
    # workers of one node share its memory, each GPU has its own
    here = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    index = _index_bytes(config, items, users, width)
    needed = here * (table * (sum(parts) + _EVALUATION) / sharded + index)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory_available()
    if needed <= free:
        return
    gradients = "" if config.train.lazy_adam else "gradients, "
    searched = f"; {index / _GB:,.1f} GB for its index" if index else ""
    raise UserError(
        f"the vectors of {items:,} items, {width} numbers each, need {needed / _GB:,.1f} GB of memory for "
        f"{'one worker' if here == 1 else f'{here} workers'} ({table / sharded / _GB:,.1f} GB each for weights, two "
        f"moments of Adam, {gradients}an evaluation{searched}), and {free / _GB:,.1f} GB are free on this "
        f"{'GPU' if device.type == 'cuda' else 'machine'}; {_advice(config, index > 0)}"
    )


def _sharers(config: RunConfig) -> int:
    """Workers among which the item tables are divided."""
    return config.cluster.workers if config.engine.item_rows == "sharded" else 1


def _index_bytes(config: RunConfig, items: int, users: int, width: int) -> float:
    """What an evaluation's index takes on each worker; 0 where it ranks exactly, or the system has no table."""
    exact = config.eval.ranking(items - 1, users)[0] == "exact" or _sharers(config) > 1
    shards = config.cluster.workers if config.eval.sharded else 1
    return 0 if exact or not width else items * config.eval.options.item_bytes(width) / shards


def _advice(config: RunConfig, index: bool) -> str:
    also = [] if config.train.lazy_adam else ["train.lazy_adam=true with ranking.negatives has no gradients of all"]
    if config.cluster.workers > 1 and not config.engine.zero_stage and config.engine.item_rows == "replicated":
        how = "engine.item_rows=sharded" if config.train.lazy_adam else "engine.zero_stage=3"
        also.append(f"{how} divides them among workers of several machines or GPUs")
    if index:
        also.append("eval.index=ivfpq has the smallest index, eval.index=exact has none")
        if config.cluster.workers > 1 and not config.eval.sharded:
            also.append("eval.sharded=true divides the index among workers")
    return "; ".join(["a smaller model.hidden needs less, as do fewer items (mealrec prepare --k-core)", *also])
