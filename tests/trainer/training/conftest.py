"""The data of the runs, and the undisturbed run to compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.run_worker import run_process
from tests.helpers.tiny_runs import make_config, make_dataset
from tests.helpers.training_runs import SETTINGS, write_config


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("loop") / "data")


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run_process(write_config(make_config(data, "sasrec", *SETTINGS), out), out) == 0
    return out
