"""The dataset of `tests.helpers.small_dataset`: one for all tests of a file, and a copy to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.small_dataset import write


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "data"
    write(out)
    return out


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))
