"""A catalogue whose vectors do not fit is refused with the estimate, what is free, and what would need less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import UserError
from tests.helpers.tiny_runs import make_config
from trainer.config.schema import RunConfig
from trainer.training import memory

CPU = torch.device("cpu")
ITEMS = 1_000_000
LAZY = ["model.ranking.negatives=8", "train.lazy_adam=true"]


def _config(*settings: str, model: str = "sasrec") -> RunConfig:
    return make_config(Path("data"), model, "model.hidden=100", *settings)


def _refused(config: RunConfig, free: float, monkeypatch: pytest.MonkeyPatch, users: int = 10) -> str:
    """The message with so much memory free, in tables of the items; "" if the run may start."""
    monkeypatch.setattr(memory, "host_memory_available", lambda: int(free * 4 * 100 * ITEMS))
    try:
        memory.check_tables(config, ITEMS, users, CPU)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "tables"), [([], 5), (LAZY, 4), (["model.ranking.untied=true"], 10), ([*LAZY[:1]], 5)]
)
def test_the_estimate_is_so_many_tables(settings: list[str], tables: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(*settings)
    assert _refused(config, tables + 0.01, monkeypatch) == ""
    told = _refused(config, tables - 0.01, monkeypatch)
    assert f"1,000,000 items, {200 if tables == 10 else 100} numbers" in told
    assert f"need {0.4 * tables:.1f} GB" in told
    assert ("lazy_adam" in told) == (settings != LAZY)


def test_workers_of_a_machine_share_its_memory_and_zero_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    workers = ["cluster.workers=2", "cluster.launcher=ray"]
    assert "for 2 workers" in _refused(_config(*workers), 9.9, monkeypatch)
    assert _refused(_config(*workers), 10.1, monkeypatch) == ""
    zero = [*workers, "engine.name=deepspeed", "engine.zero_stage=3"]
    assert _refused(_config(*zero), 6.1, monkeypatch) == ""
    assert _refused(_config(*zero), 5.9, monkeypatch)


def test_workers_that_share_the_rows_need_their_part_each(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [*LAZY, "cluster.workers=4", "cluster.launcher=ray"]
    assert "engine.item_rows=sharded divides" in _refused(_config(*workers), 3.9, monkeypatch)
    sharded = [*workers, "engine.item_rows=sharded"]
    for users in (10, 1_000_000):  # no index, for any number of users
        assert _refused(_config(*sharded), 1.1, monkeypatch, users) == ""
        told = _refused(_config(*sharded), 0.9, monkeypatch, users)
        assert "need 0.4 GB of memory for one worker (0.1 GB each" in told
        assert "sharded divides" not in told
    alone = _config(*LAZY, "engine.item_rows=sharded")  # one worker holds all, and takes an index as ever
    assert _refused(alone, 4.1, monkeypatch) == ""
    assert "for its index" in _refused(alone, 4.1, monkeypatch, 1_000_000)


def test_the_index_of_an_evaluation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a million users auto takes an index, which holds the vectors once more: a sixth table."""
    many = 1_000_000
    assert "0.4 GB for its index" in (told := _refused(_config(), 5.9, monkeypatch, many))
    assert "eval.index=exact has none" in told
    assert "eval.sharded" not in told, "there is one worker"
    assert _refused(_config(), 6.1, monkeypatch, many) == ""
    assert _refused(_config("eval.index=exact"), 5.1, monkeypatch, many) == ""
    assert _refused(_config("eval.index=ivfpq"), 5.2, monkeypatch, many) == "", "50 bytes of 400"
    workers = ["cluster.workers=4", "cluster.launcher=ray"]
    assert "eval.sharded=true divides" in _refused(_config(*workers), 5.9, monkeypatch, many)
    assert _refused(_config(*workers, "eval.sharded=true"), 5.3, monkeypatch, many) == ""


def test_systems_without_a_table_are_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _refused(make_config(Path("data"), "morec"), 0, monkeypatch) == ""
    assert _refused(make_config(Path("data"), "diqdiff"), 0, monkeypatch)
    assert _refused(make_config(Path("data"), "mealrec"), 0, monkeypatch)
