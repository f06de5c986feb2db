"""Rows of several workers: gathered with gradients, and InfoNCE over them equal to one process with the whole batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.cl4srec import CL4SRec
from models.losses.contrastive import info_nce
from models.nn.gather import Gather, repeated
from models.options.cl4srec import CL4SRecOptions
from tests.helpers.model_fixtures import HISTORIES, make_batch, model_context, randomise
from tests.helpers.tiny_runs import run_ranks
from trainer.batches.plan import Plan

ROWS, WIDTH = 7, 5
KEYS = torch.tensor([40, -3, 8, 2**40, 41, 0, 7])
OPTIONS = CL4SRecOptions(hidden=6, inner=8, attention_dropout=0.0, hidden_dropout=0.0)


@dataclass(frozen=True)
class Case:
    """Rows of each rank. spare: ranks without a row, which compute one with weight 0 to take part in collectives."""

    shares: tuple[tuple[int, ...], ...]
    spare: tuple[int, ...] = ()

    @property
    def counted(self) -> list[int]:
        """Rows with a weight above 0, in the order of ranks."""
        return [row for rank, share in enumerate(self.shares) for row in share if rank not in self.spare]

    def weight(self, rank: int) -> float:
        """The weight that the engine gives to this rank's loss."""
        return 0.0 if rank in self.spare else len(self.shares[rank]) / len(self.counted)


CASES = {
    "even": Case(((0, 1, 2), (3, 4, 5))),
    "uneven": Case(((0, 1, 2, 3, 4), (5, 6))),
    "fewer first": Case(((2,), (6, 5, 4, 3))),
    "spare": Case(((0, 4), (0,)), spare=(1,)),
    "one row": Case(((0,), (0,)), spare=(1,)),
}
THREE = {
    "uneven": Case(((6, 5, 4), (1, 2, 3), (0,))),
    "spare": Case(((0,), (1,), (0,)), spare=(2,)),
    "two spare": Case(((0,), (0,), (0,)), spare=(1, 2)),
}
WORLDS = {2: CASES, 3: THREE}


def _views(generator_seed: int) -> Tensor:
    """(ROWS, 2, WIDTH) float64 parameters: two views of every row."""
    generator = torch.Generator().manual_seed(generator_seed)
    return torch.randn(ROWS, 2, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def _rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(str(folder / "store"), world)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found: dict[str, Tensor] = {}
    for name, case in WORLDS[world].items():
        for similarity in ("dot", "cosine"):
            for key, value in _one_rank(case, similarity, rank).items():
                found[f"{name}.{similarity}.{key}"] = value
    found.update(_model_on_rank(rank, world))
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def _one_rank(case: Case, similarity: str, rank: int) -> dict[str, Tensor]:
    """This rank's part of the loss and its gradient, and the rows that it gathers."""
    views, share = _views(1), list(case.shares[rank])
    mine = views[share]
    if rank in case.spare:  # with dropout its vector differs from that on the rank that owns the row
        mine = mine + 3.0
    loss = case.weight(rank) * info_nce(mine[:, 0], mine[:, 1], KEYS[share], similarity, 0.7)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, views)
    gather = Gather.of(len(share), torch.device("cpu"))
    return {"loss": loss.detach(), "gradient": gradient, "rows": gather(KEYS[share])}


def _model(world_seed: int = 5) -> CL4SRec:
    model = CL4SRec(OPTIONS, model_context(seed=world_seed)).double().train()
    randomise(model)
    return model


def _model_on_rank(rank: int, world: int) -> dict[str, Tensor]:
    """Losses and gradients of a whole system, with a plan whose last step has fewer rows than workers."""
    model, batch = _model(), make_batch(HISTORIES)
    plan = Plan(len(batch), len(batch) - 1)
    found = {}
    for step in range(plan.steps):
        ((rows, weight),) = plan.share(step, rank, world, 1)
        losses = model(batch[torch.from_numpy(rows)])
        total = weight * sum(model.loss_weights[name] * value for name, value in losses.items())
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
        found[f"model.{step}.loss"] = total.detach()
        found[f"model.{step}.gradient"] = torch.cat([g.flatten() for g in gradients])
    return found


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The results of every rank, for all cases of its world size."""
    world, folder = request.param, tmp_path_factory.mktemp("gather")
    run_ranks(_rank, world, folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)]


def _same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_losses_and_gradients_summed_over_workers_are_those_of_one_process(
    ranks: list[dict[str, Tensor]], similarity: str
) -> None:
    for name, case in WORLDS[len(ranks)].items():
        views, rows = _views(1), case.counted
        loss = info_nce(views[rows, 0], views[rows, 1], KEYS[rows], similarity, 0.7)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, views)
        _same(sum(found[f"{name}.{similarity}.loss"] for found in ranks), loss.detach())  # type: ignore[arg-type]
        _same(sum(found[f"{name}.{similarity}.gradient"] for found in ranks), gradient)  # type: ignore[arg-type]
        assert gradient.any() or len(rows) == 1, "a row without others has no negatives"


def test_rows_are_gathered_in_the_order_of_ranks(ranks: list[dict[str, Tensor]]) -> None:
    for name, case in WORLDS[len(ranks)].items():
        rows = [row for share in case.shares for row in share]
        for found in ranks:
            assert found[f"{name}.dot.rows"].tolist() == KEYS[rows].tolist()


def test_cl4srec_on_several_workers_has_the_gradients_of_one(ranks: list[dict[str, Tensor]]) -> None:
    model, batch = _model(), make_batch(HISTORIES)
    plan = Plan(len(batch), len(batch) - 1)
    assert len(plan.positions(1)) == 1, "the last step leaves workers without rows"
    for step in range(plan.steps):
        losses = model(batch[torch.from_numpy(plan.positions(step))])
        total = losses["ranking"] + OPTIONS.lambda_contrast * losses["contrast"]
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
        _same(sum(found[f"model.{step}.loss"] for found in ranks), total.detach())  # type: ignore[arg-type]
        expected = torch.cat([g.flatten() for g in gradients])
        _same(sum(found[f"model.{step}.gradient"] for found in ranks), expected)  # type: ignore[arg-type]


def test_without_a_process_group_rows_are_those_of_this_process() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    gather = Gather.of(3, rows.device)
    assert gather(rows) is rows
    assert (gather.counts, gather.start) == ((3,), 0)


def test_repeated_marks_every_key_but_the_first_of_its_kind() -> None:
    keys = torch.tensor([5, -1, 5, 3, -1, 5, 2**50, 0])
    assert repeated(keys).tolist() == [key in keys.tolist()[:place] for place, key in enumerate(keys.tolist())]
    assert repeated(keys[:0]).tolist() == []
