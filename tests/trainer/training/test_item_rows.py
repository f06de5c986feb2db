"""engine.item_rows=sharded: each worker holds a share of the item table. Losses, weights and ranks are those of one
process, resumes are equal to the bit, checkpoints fit any number of workers, and a share has its part of the memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from models.contract import SequenceModel
from models.errors import UserError
from models.nn.row_exchange import SharedEmbedding, rows_of
from models.row_share import RowShare
from models.systems import build, options_of
from retrieval.exact import Histories, exact_ranks, exact_topk, for_similarity
from tests.helpers.model_fixtures import HISTORIES, ITEMS, make_batch, model_context
from tests.helpers.tiny_runs import joined, make_config, make_dataset, run_ranks
from trainer.batches.plan import Plan
from trainer.config.schema import EngineConfig, RunConfig, TrainConfig
from trainer.evaluation.share_ranker import ShareRanker
from trainer.process import world
from trainer.training.build import load_weights
from trainer.training.checkpoint import CheckpointStore
from trainer.training.engine import NonFiniteError, TorchEngine
from trainer.training.groups import Groups, parameter_count
from trainer.training.loop import Loop
from trainer.training.runs import open_run
from trainer.training.worker import evaluate_choices, train_worker

_NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
SASREC: dict[str, Any] = {"hidden": 6, "inner": 8, **_NO_DROPOUT, "ranking": {"negatives": 5}}
#: name -> system, its options, the largest norm of a gradient
JOBS: dict[str, tuple[str, dict[str, Any], float]] = {
    "sasrec": ("sasrec", {**SASREC, "ranking": {"negatives": 5, "sampling": "popularity"}}, 0.0),
    "untied": ("sasrec", {**SASREC, "ranking": {"negatives": 5, "untied": True, "absent": "left_out"}}, 1e-3),
    "content": ("sasrec", {**SASREC, "ranking": {"negatives": 5, "content": "text", "id_dropout": 0.5}}, 0.0),
    "cl4srec": ("cl4srec", SASREC, 0.0),
    "tedrec": ("tedrec", {**SASREC, "experts": 2, "adaptor_dropout": 0.0}, 0.0),
    "mealrec": (
        "mealrec",
        {"backbone": "sasrec", "sasrec": SASREC, "steps": 2, "tcd": {"channels": [8, 16], "dropout": 0.0},
         "npd": {"dropout": 0.0}}, 0.0,
    ),
}  # fmt: skip
K = 4


def _share() -> RowShare | None:
    rank, size = world()
    return RowShare(rank, size, ITEMS) if size > 1 else None


def _engine(name: str) -> TorchEngine:
    system, options, clip = JOBS[name]
    torch.manual_seed(0)
    model = build(system, options_of(system, options), replace(model_context(), share=_share()))
    assert isinstance(model, SequenceModel)
    return TorchEngine(model, TrainConfig(lazy_adam=True, clip_norm=clip), EngineConfig(name="torch"), _CPU)


_CPU = torch.device("cpu")
_ROWS = make_batch(HISTORIES)
PLAN = Plan(len(_ROWS), len(_ROWS) - 1)  # the last step has one row, so one of two workers has none


def _step(engine: TorchEngine, step: int) -> float:
    rank, size = world()
    terms = engine.step([(_ROWS[torch.from_numpy(rows)], weight) for rows, weight in PLAN.share(step, rank, size, 1)])
    total = torch.stack([terms[name] for name in sorted(terms) if name in engine.model.loss_weights])
    if size > 1:
        dist.all_reduce(total)
    return float(total.sum())


def _commit(engine: TorchEngine, folder: Path, step: int) -> None:
    tensors, parts = engine.state(), engine.parts()
    if world()[0] == 0:
        CheckpointStore(folder).commit(step, tensors, {}, parts=parts)
    if parts is not None:
        parts.send()
        dist.barrier()


def _ranked(engine: TorchEngine) -> dict[str, list[Any]]:
    """Ranks and first items of `_ROWS`, each worker a half of the users."""
    rank, size = world()
    rows = np.array_split(np.arange(len(_ROWS)), size)[rank]
    batch, histories = _ROWS[torch.from_numpy(rows)], Histories.of([HISTORIES[row] for row in rows])
    with engine.whole() as model:
        items_ID = for_similarity(model.item_vectors(), model.similarity)
        if model.share is not None:
            ranks, lists = ShareRanker(model, items_ID).rank(batch, histories, K)
            assert lists is not None
            return {"ranks": [x.tolist() for x in ranks], "lists": [x.tolist() for x in lists]}
        users_BD = for_similarity(model.user_vectors(batch), model.similarity)
        lists_BK = [exact_topk(users_BD, items_ID, K, known)[1].tolist() for known in (None, histories)]
        return {"ranks": [x.tolist() for x in exact_ranks(users_BD, items_ID, batch.target, histories)],
                "lists": lists_BK}  # fmt: skip


def _run(name: str, folder: Path) -> None:
    """Both steps, with a checkpoint after each; the second again from the checkpoint; ranks."""
    rank = world()[0]
    engine = _engine(name)
    losses = []
    for step in range(PLAN.steps):
        losses.append(_step(engine, step))
        _commit(engine, folder, step)
    (folder / f"{rank}.json").write_text(json.dumps({
        "losses": losses, **_ranked(engine), "parameters": parameter_count(engine.model), "bytes": _bytes(engine)
    }))  # fmt: skip
    again, found = _engine(name), CheckpointStore(folder, share=_share()).load(0)
    load_weights(again.model, found.tensors["model"])
    again.load_optimizer(found.tensors["optimizer"])
    assert _step(again, 1) == losses[1]
    for (one, value), (two, resumed) in zip(
        engine.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert one == two
        assert torch.equal(value, resumed)
        assert all(torch.equal(x, again._adam.state[resumed][key]) for key, x in engine._adam.state[value].items())


def _bytes(engine: TorchEngine) -> int:
    """Of the item table and its moments on this worker."""
    (table,) = (p for name, p in engine.model.named_parameters() if name.endswith("item_embedding.weight"))
    return table.nbytes + sum(moment.nbytes for key, moment in engine._adam.state[table].items() if key != "step")


def _on_rank(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(rank, size, folder / f"{size}.store"):
        for name in JOBS:
            (folder / f"{size}-{name}").mkdir(exist_ok=True)
            _run(name, folder / f"{size}-{name}")
        if size > 1:
            _gradients_of_rows(rank)
            _a_save_that_fails(folder)
            _a_bad_row(rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All jobs on one process and on two, and what two alone can show."""
    out = tmp_path_factory.mktemp("item_rows")
    for size in (1, 2):
        run_ranks(_on_rank, size, out)
    return out


def _told(folder: Path, size: int, name: str, rank: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"{size}-{name}" / f"{rank}.json").read_text())
    return told


@pytest.mark.parametrize("name", JOBS)
def test_two_workers_learn_what_one_does(folder: Path, name: str) -> None:
    one, two = (_told(folder, size, name) for size in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-6)
    assert one["parameters"] == two["parameters"]
    whole, joint = (CheckpointStore(folder / f"{size}-{name}").load(1).tensors for size in (1, 2))
    _same(whole, joint)


def _same(one: Groups, two: Groups) -> None:
    assert one.keys() == two.keys()
    for group in one:
        assert one[group].keys() == two[group].keys()
        for name, value in one[group].items():
            # a bias of keys changes no attention, so its gradient is noise, which Adam makes as large as any
            used = slice(len(value) // 2, None) if "key_value.bias/" in f"{name}/" and len(value.shape) else ...
            torch.testing.assert_close(value[used], two[group][name][used], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", JOBS)
def test_two_workers_rank_as_one_does(folder: Path, name: str) -> None:
    one, halves = _told(folder, 1, name), [_told(folder, 2, name, rank) for rank in (0, 1)]
    for way in (0, 1):
        assert one["ranks"][way] == [x for half in halves for x in half["ranks"][way]]
        assert one["lists"][way] == [x for half in halves for x in half["lists"][way]]


def test_a_checkpoint_is_read_by_any_number_of_workers(folder: Path) -> None:
    for name in ("sasrec", "untied"):
        whole = CheckpointStore(folder / f"2-{name}").load(1).tensors
        for share in (RowShare(rank, size, ITEMS) for size in (1, 2, 3, 20) for rank in range(size)):
            mine = CheckpointStore(folder / f"2-{name}", share=share).load(1).tensors
            for group in whole:
                for key, value in whole[group].items():
                    table = key.split("/")[0] in ("item_embedding.weight", "candidates.own") and "/step" not in key
                    rows = share.of(value) if table else value
                    assert torch.equal(mine[group][key], rows), (share, key)


def test_a_part_that_is_missing_or_damaged_is_not_passed_over(folder: Path) -> None:
    step = folder / "2-cl4srec/step-000000001"
    manifest = json.loads((step / "manifest.json").read_text())
    listed = {**manifest, "files": {name: f for name, f in manifest["files"].items() if "model-part-1" not in name}}
    (step / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="does not list the files"):
        CheckpointStore(folder / "2-cl4srec").load(1)
    (step / "manifest.json").write_text(json.dumps(manifest))
    part = step / "model-part-1-of-2.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x00")
    first = CheckpointStore(folder / "2-cl4srec", share=RowShare(0, 2, ITEMS))
    assert first.load(1).step == 1  # it needs no row of that part
    latest = first.latest()
    assert latest is not None
    assert latest.step == 0  # where the run goes on, for all workers


def test_each_worker_holds_its_part_of_the_table_and_its_moments(folder: Path) -> None:
    whole, halves = _told(folder, 1, "sasrec")["bytes"], [_told(folder, 2, "sasrec", rank)["bytes"] for rank in (0, 1)]
    row = whole // ITEMS
    assert sum(halves) == whole + row  # each has the padding row
    assert max(halves) - min(halves) <= row


def test_a_share_is_drawn_as_the_whole_table_is_in_blocks_of_any_rest() -> None:
    for items in (5, 40, (1 << 16) + 5, (1 << 17) + 16):
        for size in (1, 3):
            whole = torch.zeros(items, 3)
            for rank in range(size):
                share = RowShare(rank, size, items)
                torch.manual_seed(1)
                drawn, after = share.normal(3, 1.0), torch.rand(1)
                assert torch.equal(share.local(share.rows(torch.arange(share.count))), torch.arange(share.count))
                share.place(whole, drawn)
            torch.manual_seed(1)
            assert torch.equal(whole, torch.randn(items, 3))
            assert torch.equal(after, torch.rand(1))


def _gradients_of_rows(rank: int) -> None:
    """Rows, equal ones and padding among them, and their gradients are those of the whole table."""
    torch.manual_seed(1)
    share, whole = RowShare(rank, 2, 7), torch.randn(7, 2).requires_grad_()
    table = nn.Parameter(share.of(whole.detach()))
    asked = [torch.tensor([[0, 6, 3], [3, 1, 1]]), torch.tensor([[3, 6]])]
    weight = torch.arange(12.0).view(2, 3, 2)
    found = rows_of(table, asked[rank], share)
    assert torch.equal(found, whole[asked[rank]])
    (found * weight[: found.shape[0], : found.shape[1]]).sum().backward()
    for rows in asked:
        (
            nn.functional.embedding(rows, whole, padding_idx=0) * weight[: rows.shape[0], : rows.shape[1]]
        ).sum().backward()
    assert table.grad is not None
    assert whole.grad is not None
    assert torch.equal(table.grad.to_dense(), share.of(whole.grad))
    assert rows_of(table, asked[0][:0] if rank else asked[0], share).shape == ((0, 3, 2) if rank else (2, 3, 2))


def _a_save_that_fails(folder: Path) -> None:
    """A full disk after the first part: every worker raises, and none waits for another one."""
    engine = _engine("sasrec")
    _step(engine, 0)
    parts = engine.parts()
    assert parts is not None

    def save() -> None:
        next(iter(parts))
        raise UserError("the disk is full")

    rank, size = world()
    with pytest.raises(UserError, match="the disk is full"):
        Loop._settle(SimpleNamespace(rank=rank, size=size), save, parts)  # type: ignore[arg-type]
    del folder


def _a_bad_row(rank: int) -> None:
    """A vector that is not finite stops both workers before the update, and an evaluation is refused on both."""
    engine = _engine("sasrec")
    embedding = engine.model.item_embedding
    assert isinstance(embedding, SharedEmbedding)
    if rank == 1:
        with torch.no_grad():
            embedding.weight[1:] = torch.inf
    before = embedding.weight.detach().clone()
    with pytest.raises(NonFiniteError):
        _step(engine, 0)
    assert torch.equal(before, embedding.weight)
    with engine.whole() as model, pytest.raises(UserError, match="item vectors hold NaN or an infinite"):
        ShareRanker(model, model.item_vectors())


SETTINGS = ("engine.item_rows=sharded", "train.lazy_adam=true", "model.ranking.negatives=8", "train.epochs=2",
            "train.keep_optimizer=true", "model.attention_dropout=0", "model.hidden_dropout=0",
            "eval.metrics=[HR, NDCG, Coverage]", "eval.batch_size=13")  # fmt: skip


def _train_on_rank(rank: int, size: int, config: dict[str, Any], run_dir: Path) -> None:
    with joined(rank, size, run_dir.with_suffix(f".{size}-{config['train']['epochs']}.store")):
        train_worker({"config": config, "run_dir": str(run_dir), "command": "test"})


def _trained(size: int, run_dir: Path, data: Path, *settings: str) -> RunConfig:
    """Train in steps of 64 rows; two workers say it as 32 rows each."""
    counted = ("train.batch_size=32", "train.batch_per=worker") if size == 2 else ()
    workers = (f"cluster.workers={size}", "cluster.launcher=ray")
    config = make_config(data, "sasrec", *SETTINGS, *workers, *counted, *settings)
    run_dir.mkdir(exist_ok=True)
    run_ranks(_train_on_rank, size, config.model_dump(mode="json"), run_dir)
    return config


def _epochs(run_dir: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["metrics"]["loss"]["ranking"], line["metrics"]["valid"]["NDCG@10"]) for line in lines
            if line["event"] == "epoch"]  # fmt: skip


def test_a_run_goes_on_with_any_number_of_workers_and_is_opened_by_one(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    config = _trained(1, one, data)
    _trained(2, two, data)
    assert [x for epoch in _epochs(one) for x in epoch] == pytest.approx([x for epoch in _epochs(two) for x in epoch],
                                                                         rel=1e-5)  # fmt: skip
    for begun, ended in ((3, 1), (1, 2)):  # of three workers, one has a batch of users less
        run_dir = resumed.with_name(f"resumed-{begun}")
        _trained(begun, run_dir, data, "train.epochs=1")
        _trained(ended, run_dir, data)
        assert _epochs(run_dir)[1] == pytest.approx(_epochs(two)[1], rel=1e-5)
    same = tmp_path / "same"
    _trained(2, same, data, "train.epochs=1")
    _trained(2, same, data)
    straight, again = (CheckpointStore(run / "checkpoints").latest() for run in (two, same))
    assert straight is not None
    assert again is not None
    for group, tensors in straight.tensors.items():
        assert all(torch.equal(value, again.tensors[group][name]) for name, value in tensors.items())
    opened = open_run(two, str(data))
    report = json.loads((two / "test.json").read_text())
    results = evaluate_choices(opened.model, opened.loaded, config)[0]["test"]["default"].metrics()
    assert results == pytest.approx({name: report[name] for name in results}, rel=1e-6)


def test_settings_that_do_not_fit_are_refused_with_what_to_do() -> None:
    sharded = "engine.item_rows=sharded"
    for settings, told in (
        ((sharded,), "train.lazy_adam=true"),
        ((sharded, "train.lazy_adam=true", "eval.index=ivf"), "eval.index at auto or exact"),
        ((sharded, "train.lazy_adam=true", "eval.sharded=true"), "eval.sharded at false"),
    ):
        with pytest.raises(UserError, match=told):
            make_config(Path("data"), "sasrec", *settings)
