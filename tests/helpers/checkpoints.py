"""Small checkpoints whose content tells their step and seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.training.checkpoint_reading import Checkpoint


def content(step: int, seed: int = 0) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    flat = torch.full((64,), float(step)) + seed
    tensors = {
        "model": {"weight": flat[:32].view(4, 8), "bias": flat[16:]},  # views that share storage
        "optimizer": {"0.exp_avg": flat * 2, "0.step": torch.tensor(float(step))},
    }
    return tensors, {"step": step, "seed": seed, "rng": [2**100, 1.5, None], "best": float("-inf")}


def assert_consistent(checkpoint: Checkpoint | None) -> tuple[int, int]:
    """Assert that tensors and state are of the same checkpoint; return (step, seed)."""
    assert checkpoint is not None
    tensors, state = content(checkpoint.step, checkpoint.state["seed"])
    assert checkpoint.state == state
    assert checkpoint.tensors.keys() == tensors.keys()
    for group, named in tensors.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        for name, value in named.items():
            assert torch.equal(checkpoint.tensors[group][name], value)
    return checkpoint.step, checkpoint.state["seed"]
