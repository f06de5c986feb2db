"""What a model computes once per evaluation, not once per batch: encoded items, propagated graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Caching(nn.Module):
    """Caches one value while it is in eval mode without gradients; put it before SequenceModel in the list of bases.

    A value is dropped by every `train()` and `eval()`, and by every use with gradients or in training mode (fused
    optimizers write to parameters without a trace). It is not used once a parameter was written to or moved, so that
    weights may be loaded at any time.
    """

    _cache: tuple[Hashable, Any] | None = None

    def cached(self, make: Callable[[], T]) -> T:
        """The cached value of `make()`, called where there is none; a model calls this with one `make` only."""
        if self.training or torch.is_grad_enabled():
            self._cache = None
            return make()
        state = self._state()
        if self._cache is None or self._cache[0] != state:
            self._cache = (state, make())
        value: T = self._cache[1]
        return value

    def cached_value(self) -> Any | None:
        """The cached value if there is one that may be used, else None: for those who could do without it."""
        if self.training or torch.is_grad_enabled() or self._cache is None or self._cache[0] != self._state():
            return None
        return self._cache[1]

    def train(self, mode: bool = True) -> Any:
        self._cache = None
        return super().train(mode)

    def _state(self) -> Hashable:
        """Changes with every write to a parameter in place, and when a module is moved."""
        return tuple((p.data_ptr(), p._version) for p in self.parameters())
