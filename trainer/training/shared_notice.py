"""A notice to stop that one worker got, known to all of them at the same step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import preemption


class SharedNotice:
    """Whether any rank was told to stop, answered alike on every rank."""

    def __init__(self, size: int) -> None:
        # of its own, on the CPU: a question must neither wait for the device nor for the gradients
        self._group = dist.new_group(backend="gloo") if size > 1 else None
        self._asked: tuple[Tensor, Any] | None = None

    def given(self, *, wait: bool = False) -> bool:
        """The answer to the question of the call before, so that no step waits for it; wait: to that of now.

        Collective.
        """
        if self._group is None:
            return preemption.noticed()
        before = self._asked
        told = torch.tensor([int(preemption.noticed())])
        self._asked = (told, dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True))
        answers = [each for each in (before, self._asked if wait else None) if each is not None]
        for _, handle in answers:
            handle.wait()
        return any(bool(answer) for answer, _ in answers)
