"""A cache for values that a model computes once per evaluation, not once per batch: encoded items, graph outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Caching(nn.Module):
    """Caches one value while the model is in eval mode without gradients. Must come before SequenceModel in the bases.

    Every `train()` and `eval()` drops the value, and so does every use with gradients or in training mode, because a
    fused optimizer changes parameters without changing their version. The value is also not used after a parameter was
    written to or moved, so weights may be loaded at any time.
    """

    _cache: tuple[Hashable, Any] | None = None

    def cached(self, make: Callable[[], T]) -> T:
        """The cached value, or else a new one from `make()`. A model must always pass the same `make`."""
        if self.training or torch.is_grad_enabled():
            self._cache = None
            return make()
        if self._cache is not None and torch.compiler.is_exporting():  # nothing changes meanwhile
            kept: T = self._cache[1]
            return kept
        state = self._state()
        if self._cache is None or self._cache[0] != state:
            self._cache = (state, make())
        value: T = self._cache[1]
        return value

    def cached_value(self) -> Any | None:
        """The cached value if there is a valid one, else None; for callers that do not need all of it."""
        if self.training or torch.is_grad_enabled() or self._cache is None or self._cache[0] != self._state():
            return None
        return self._cache[1]

    def train(self, mode: bool = True) -> Any:
        self._cache = None
        return super().train(mode)

    def _state(self) -> Hashable:
        """A value that changes when a parameter is written to in place, or when the module is moved."""
        return tuple((p.data_ptr(), p._version) for p in self.parameters())
