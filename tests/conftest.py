"""Fixtures of several test files."""

from __future__ import annotations

import pytest

from models.layout import Layout


@pytest.fixture
def padded_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models lay batches out as on a GPU, padding kept."""
    of = Layout.of
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch, pack=False: of(batch, pack)))


@pytest.fixture(params=["packed", "padded"])
def layouts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models lay batches out as on a CPU, then as on a GPU with their padding kept."""
    of, pack = Layout.of, request.param == "packed"
    monkeypatch.setattr(Layout, "of", staticmethod(lambda batch: of(batch, pack)))
