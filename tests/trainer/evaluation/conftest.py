"""A dataset for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_runs import make_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `make_dataset`; tests must not write to it."""
    return make_dataset(tmp_path_factory.mktemp("evaluation") / "data")
