"""What a model computes once per evaluation, not once per batch: encoded items, propagated graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Remembering(nn.Module):
    """Keeps one value while it is in eval mode without gradients; put it before SequenceModel in the list of bases.

    A value is dropped by every `train()` and `eval()`, and by every use with gradients or in training mode (fused
    optimizers write to parameters without a trace). It is not used once a parameter was written to or moved, so that
    weights may be loaded at any time.
    """

    _kept: tuple[Hashable, Any] | None = None

    def remember(self, make: Callable[[], T]) -> T:
        """The kept value of `make()`; a model calls this with one `make` only."""
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return make()
        state = self._state()
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, make())
        value: T = self._kept[1]
        return value

    def remembered(self) -> Any | None:
        """The kept value if there is one that may be used, else None: for those who could do without it."""
        if self.training or torch.is_grad_enabled() or self._kept is None or self._kept[0] != self._state():
            return None
        return self._kept[1]

    def train(self, mode: bool = True) -> Any:
        self._kept = None
        return super().train(mode)

    def _state(self) -> Hashable:
        """Changes with every write to a parameter in place, and when a module is moved."""
        return tuple((p.data_ptr(), p._version) for p in self.parameters())
