"""A cached value is never stale: modes, gradients, writes to parameters, moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.nn.cache import Caching


class _Doubler(Caching):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1, bias=False)
        self.calls = 0

    def value(self) -> Tensor:
        return self.cached(self._make)

    def _make(self) -> Tensor:
        self.calls += 1
        return 2 * self.inner.weight


def test_a_value_is_made_once_in_eval_mode_without_gradients() -> None:
    model = _Doubler().eval()
    with torch.no_grad():
        assert model.cached_value() is None
        first = model.value()
        assert model.value() is first
        assert model.cached_value() is first
    assert model.calls == 1


def test_nothing_is_cached_in_training_or_with_gradients() -> None:
    model = _Doubler().eval()
    assert model.value().requires_grad
    assert model.value() is not model.value()
    with torch.no_grad():
        model.value()
    assert model.cached_value() is None
    assert model.value().requires_grad
    model.train()
    with torch.no_grad():
        before = model.calls
        model.value()
        model.value()
    assert model.calls == before + 2


def test_switching_modes_drops_the_value() -> None:
    model = _Doubler().eval()
    with torch.no_grad():
        for switch in (model.eval, model.train):
            model.value()
            switch()
            assert model._cache is None
        nn.Sequential(model).eval()
        model.value()
        nn.Sequential(model).eval()
        assert model._cache is None


def test_weights_loaded_in_eval_mode_are_seen() -> None:
    model = _Doubler().eval()
    with torch.no_grad():
        for value in (1.0, 2.0):
            model.inner.weight.copy_(torch.full((1, 1), value))
            assert model.value().item() == 2 * value
        model.load_state_dict({"inner.weight": torch.full((1, 1), 3.0)})
        assert model.cached_value() is None
        assert model.value().item() == 6
        model.double()
        assert model.value().dtype == torch.float64


def test_an_optimizer_step_in_eval_mode_is_seen() -> None:
    for fused in (False, True):
        model = _Doubler().eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
        with torch.no_grad():
            before = model.value().item()
        model.value().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            assert model.value().item() != before


def test_the_value_is_no_part_of_the_state() -> None:
    model = _Doubler().eval()
    with torch.no_grad():
        model.value()
    assert list(model.state_dict()) == ["inner.weight"]
