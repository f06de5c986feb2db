"""Fixtures of several test files."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.nn.layout import Layout


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


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s of numbers (tests/helpers/clips.py), 25 frames and a key frame each second."""
    from tests.helpers.clips import number_clip  # not every test needs av

    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    number_clip(path, frames=250, gop=25, bframes=2)
    return path
