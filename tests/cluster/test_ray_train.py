"""Which errors of a worker end a run, and which start the workers again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.failures import WorkerFailed
from cluster.ray_train import _run


@pytest.mark.parametrize(
    ("error", "final"),
    [
        *((OSError(code, os.strerror(code)), True) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)),
        (ValueError("a user's mistake"), True),
        (OSError(errno.ECONNRESET, "a connection broke"), False),
        (RuntimeError("a bug"), False),
    ],
)
def test_only_what_would_fail_again_is_final(
    error: Exception, final: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(_: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    with pytest.raises(WorkerFailed, match=str(error.args[-1])) as failed:
        _run(worker, str(tmp_path / "console.log"), str(tmp_path / "stop"), {})
    assert failed.value.final is final
