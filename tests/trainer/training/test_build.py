"""Models that cannot be built."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from models.errors import UserError
from tests.helpers.tiny_runs import fork_server, make_config
from tests.helpers.training_runs import train


def _train_hugely(data: Path, run_dir: Path) -> None:
    """Its largest matrix has 64 GiB, more than this process may have, on any machine."""
    resource.setrlimit(resource.RLIMIT_AS, (48 << 30, 48 << 30))
    size = 1 << 17
    with pytest.raises(UserError, match=r"sasrec with these options does not fit into memory .*make it smaller"):
        train(make_config(data, "sasrec", f"model.hidden={size}", f"model.inner={size}", "model.heads=1"), run_dir)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB; a table of the items has 30 MB


def test_a_model_that_is_larger_than_memory(data: Path, tmp_path: Path) -> None:
    process = fork_server().Process(target=_train_hugely, args=(data, tmp_path / "run"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
