"""train.lazy_adam: rows that a step reads are updated as by torch's own optimizers, others not at all; two workers
together as one; bad steps and clipping; checkpoints; the time of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.contract import Batch, SequenceModel
from models.errors import UserError
from models.systems import build, options_of
from tests.helpers.model_fixtures import HISTORIES, make_batch, model_context
from tests.helpers.tiny_runs import joined, make_config, run_ranks
from trainer.batches.plan import Plan
from trainer.config.schema import EngineConfig, TrainConfig
from trainer.training.engine import NonFiniteError, TorchEngine
from trainer.training.groups import Groups
from trainer.training.row_updates import RowUpdates

SASREC: dict[str, Any] = {
    "hidden": 6, "inner": 8, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "ranking": {"negatives": 3, "untied": True},
}  # fmt: skip
TABLES = ("item_embedding.weight", "candidates.own")


def _engine(lazy: bool = True, system: str = "sasrec", options: Any = None, **train: Any) -> TorchEngine:
    torch.manual_seed(0)
    model = build(system, options_of(system, options or SASREC), model_context())
    assert isinstance(model, SequenceModel)
    config = TrainConfig.model_validate({"lazy_adam": lazy, **train})
    return TorchEngine(model, config, EngineConfig(name="torch"), torch.device("cpu"))


def _batch(step: int) -> Batch:
    return make_batch(HISTORIES[step : step + 3], first_key=100 * step)


def _weights(engine: TorchEngine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.state()["model"].items()}


def _same(one: Groups, two: Groups) -> None:
    for group in one:
        assert one[group].keys() == two[group].keys()
        for name, value in one[group].items():
            torch.testing.assert_close(value, two[group][name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_first_step_is_that_of_adam_and_a_row_that_is_not_read_stays() -> None:
    lazy, whole = _engine(), _engine(lazy=False)
    before = _weights(lazy)
    for engine in (lazy, whole):
        engine.step([(_batch(0), 0.5), (_batch(2), 0.5)])
    _same(lazy.state(), whole.state())
    lazy.step([(_batch(1), 1.0)])
    middle = _weights(lazy)
    lazy.step([(_batch(2), 1.0)])
    after, moved = _weights(lazy), []
    for name in TABLES:
        assert not torch.equal(before[name], middle[name])
        moved.append((middle[name] != after[name]).any(1).tolist())
    read = {item for history in HISTORIES[2:5] for item in history}
    assert [item for item, m in enumerate(moved[0]) if m] == sorted(read)
    assert 3 <= sum(moved[1]) < len(moved[1]) - 1


def test_moments_and_rows_are_those_of_torch_sparse_adam() -> None:
    def gradient(step: int) -> Tensor:
        rows = torch.tensor([[1, 4, 1], [2, 1, 5], [5, 4, 0]][step])
        values = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
        return torch.sparse_coo_tensor(rows[None], values, (7, 2), check_invariants=True).coalesce()

    ours, theirs = (nn.Parameter(torch.ones(7, 2)) for _ in range(2))
    adam, reference = torch.optim.Adam([ours], lr=0.1, eps=1e-12), torch.optim.SparseAdam([theirs], lr=0.1, eps=1e-12)
    RowUpdates(adam, [ours])
    for step in range(3):
        ours.grad, theirs.grad = gradient(step), gradient(step)
        adam.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    for moment in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(adam.state[ours][moment], reference.state[theirs][moment])


def test_a_device_that_found_a_bad_step_leaves_rows_and_moments() -> None:
    table = nn.Parameter(torch.ones(4, 2))
    adam = torch.optim.Adam([table])
    RowUpdates(adam, [table])
    for bad in (0.0, 1.0):
        adam.found_inf = torch.tensor(bad)  # type: ignore[attr-defined]
        table.grad = torch.sparse_coo_tensor(
            [[2]], torch.full((1, 2), torch.nan if bad else 1.0), (4, 2), check_invariants=True
        ).coalesce()
        adam.step()
        if not bad:
            kept = [table.detach().clone(), *(value.clone() for value in adam.state[table].values())]
    for value, before in zip([table.detach(), *adam.state[table].values()], kept, strict=True):
        assert torch.equal(value, before)


def test_clipping_counts_rows_as_it_counts_the_whole_table() -> None:
    lazy, whole = _engine(clip_norm=1e-3), _engine(lazy=False, clip_norm=1e-3)
    free = _engine()
    for engine in (lazy, whole, free):
        engine.step([(_batch(0), 1.0)])
    _same(lazy.state(), whole.state())
    name = "candidates.own/exp_avg"
    assert not torch.allclose(lazy.state()["optimizer"][name], free.state()["optimizer"][name])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    engine = _engine()
    with torch.no_grad():
        engine.model.candidates.own[:] = torch.inf  # type: ignore[index,union-attr]
    before = _weights(engine)
    with pytest.raises(NonFiniteError):
        engine.step([(_batch(0), 1.0)])
    assert all(torch.equal(value, before[name]) for name, value in engine.state()["model"].items())


def test_a_state_continues_to_the_bit() -> None:
    straight, resumed = _engine(), _engine()
    for step in (0, 1):
        straight.step([(_batch(step), 1.0)])
    state = straight.state()
    with torch.no_grad():
        for name, parameter in resumed.model.named_parameters():
            parameter.copy_(state["model"][name])
    resumed.load_optimizer(state["optimizer"])
    for engine in (straight, resumed):
        engine.step([(_batch(2), 1.0)])
    for group, tensors in straight.state().items():
        assert all(torch.equal(value, resumed.state()[group][name]) for name, value in tensors.items())


def _on_rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(rank, world, folder / f"{world}.store"):
        engine, batch = _engine(), make_batch(HISTORIES)
        plan = Plan(len(batch), len(batch) - 1)  # the last step has one row
        for step in range(plan.steps):
            engine.step([(batch[torch.from_numpy(rows)], weight) for rows, weight in plan.share(step, rank, world, 1)])
        groups = engine.state()
    if rank == 0:
        flat = {f"{group}:{name}": value for group, tensors in groups.items() for name, value in tensors.items()}
        save_file(flat, folder / f"{world}.safetensors")


def test_two_workers_update_as_one(tmp_path: Path) -> None:
    for world in (1, 2):
        run_ranks(_on_rank, world, tmp_path)
    one, two = (load_file(tmp_path / f"{world}.safetensors") for world in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6, msg=name)


def test_systems_and_settings_that_it_cannot_work_with_are_refused() -> None:
    with pytest.raises(UserError, match=r"ranking\.negatives"):
        _engine(options={"hidden": 6})
    mealrec = {"backbone": "sasrec", "sasrec": SASREC, "steps": 2, "tcd": {"channels": [8, 16]}}
    assert _engine(system="mealrec", options=mealrec).model.sparse_tables()
    for setting, told in (("engine.name=auto", "engine.name=torch"), ("train.weight_decay=0.1", "weight_decay")):
        with pytest.raises(UserError, match=told):
            make_config(Path("data"), "sasrec", "train.lazy_adam=true", setting)
