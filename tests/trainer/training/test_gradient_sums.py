"""Small gradients travel in one message, large ones in one each (that sums are right: test_engines.py)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.training import gradient_sums
from trainer.training.gradient_sums import sum_gradients


def test_small_gradients_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def all_reduce(x: Tensor, async_op: bool) -> SimpleNamespace:
        assert async_op
        sent.append(x.numel())
        return SimpleNamespace(wait=lambda: x.mul_(2))  # what the other of two equal workers adds

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(gradient_sums, "_SMALL", 4 * 10)
    shapes = [(2, 3), (11,), (), (10,), (5, 3)]
    gradients = [torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes]
    before = [gradient.clone() for gradient in gradients]
    sum_gradients(gradients)
    assert sent == [11, 15, 6 + 1 + 10]
    assert all(torch.equal(gradient, 2 * old) for gradient, old in zip(gradients, before, strict=True))
