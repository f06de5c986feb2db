"""The speeds of benchmarks/gpu.py: epochs, evaluation, compilers and graphs, checkpoints, large catalogues."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_models import Training, profiled
from gpu_lab import SYSTEMS, Lab

from models.contract import Batch, ModelContext, TrainingInteractions
from models.options.sasrec import SASRecOptions
from models.systems import build
from models.tensor_table import TensorTable
from retrieval.exact import Histories, exact_ranks
from trainer.config import recipe
from trainer.evaluation.evaluate import evaluate
from trainer.training.engine import TorchEngine
from trainer.training.loop import Loop
from trainer.training.reporting import EpochReporter

Result = dict[str, Any]
_PRECISIONS = ("fp32", "tf32", "bf16")
#: steps that are timed of an epoch that is longer
_WINDOW = 40


def epochs(lab: Lab) -> Result:
    """Seconds of a training epoch and of an evaluation, kernels a step, and memory: each system, size and precision."""
    found: Result = {}
    for size in lab.sizes:
        for name in reversed(SYSTEMS):
            for precision in _PRECISIONS:
                run = lab.run(name, size, f"engine.precision={precision}")
                row = _epoch(lab, run, evaluated=precision == _PRECISIONS[0])
                found[f"{size} {name} {precision}"] = row
                shown = {key: value for key, value in row.items() if key != "longest"}
                print("  ", size, name, precision, json.dumps(shown), flush=True)
    return found


def _epoch(lab: Lab, run: Training, *, evaluated: bool) -> Result:
    """Median of three windows of an epoch, or of its first steps if it is long."""
    plan = run.plan
    steps = min(plan.steps, _WINDOW)
    run.run(min(10, plan.steps))
    if steps == plan.steps:
        run.run(plan.steps)  # what is done once for each shape of a batch
    lab.wait()
    walls, hosts = [], []
    for _ in range(3):
        started = time.perf_counter()
        run.run(steps)
        hosts.append(time.perf_counter() - started)
        lab.wait()
        walls.append(time.perf_counter() - started)
    each = plan.steps / steps
    row: Result = {
        "steps": plan.steps, "measured": steps, "epoch_s": each * statistics.median(walls),
        "host_s": each * statistics.median(hosts), "range_s": [each * min(walls), each * max(walls)],
    }  # fmt: skip
    if lab.device.type == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        run.run(1)  # of a new epoch, whose order is computed here, and does not count
        row |= profiled(run, lab.device)
        torch.cuda.reset_peak_memory_stats()
    if evaluated:  # the same in all precisions
        row |= _evaluated(run, chains=steps == plan.steps)
    return row


def _evaluated(run: Training, *, chains: bool) -> Result:
    """Seconds of an evaluation in each way of encoding users. chains: also in those that take a minute."""
    row: Result = {}
    with run.engine.whole() as whole:
        evaluate(whole, run.loaded, "validation", run.config.eval)
        for way in whole.inference_choices:
            if chains or "chain" not in way:
                whole.inference = way
                row[f"evaluation_s {way}"] = evaluate(whole, run.loaded, "validation", run.config.eval).seconds
    return row


def placements(lab: Lab) -> Result:
    """Where content is: the same weights from all places, and milliseconds of a step."""
    if lab.device.type != "cuda":
        return {"missing": "needs a GPU"}
    found: Result = {"wrong": []}
    size, weights = lab.sizes[0], []
    for where in ("resident", "pinned", "mmap"):
        run = lab.run("mealrec-tedrec", size, f"data.loader={where}", "engine.precision=tf32")
        run.run(run.plan.steps + 3)
        lab.wait()
        started = time.perf_counter()
        run.run(run.plan.steps)
        lab.wait()
        found[where] = {"ms/step": 1e3 * (time.perf_counter() - started) / run.plan.steps, "said": run.engine.remarks}
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    difference = max(float((weights[0] - other).abs().max()) for other in weights[1:2])
    found["largest difference of weights, resident and pinned"] = difference
    if difference:
        found["wrong"].append(f"resident and pinned differ by {difference:.1e}")
    return found


def compilers(lab: Lab) -> Result:
    """Milliseconds of one step on a batch that stays: as it is, as a CUDA graph, compiled, and both."""
    if lab.device.type != "cuda":
        return {"missing": "needs a GPU"}
    found: Result = {}
    size, name = lab.sizes[-1], "mealrec-tedrec"
    for mode in ("eager", "graph", "compiled", "compiled graph"):  # each compilation takes most of a minute
        key = f"{size} {name} {mode} tf32"
        try:
            found[key] = {"step_ms": _fixed_step(lab.run(name, size, "engine.precision=tf32"), mode)}
        except Exception as error:  # what a compiler cannot do is a finding
            found[key] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print("  ", key, found[key], flush=True)
    return found


def _fixed_step(run: Training, mode: str, repeats: int = 30) -> float:
    torch._dynamo.reset()
    run.model.train()
    rows = np.arange(min(run.config.train.batch_size, run.loaded.training_rows.count))
    batch = run.loaded.training_rows.batch(1, rows)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=1e-3, fused=True, capturable=True)
    forward = run.engine.training_pass
    compute = torch.compile(forward, dynamic=False) if "compiled" in mode else forward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        total, _ = compute(batch)
        total.backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    go: Callable[[], None] = step
    if "graph" in mode:
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            step()
        go = graph.replay
    for _ in range(5):
        go()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        go()
    end.record()
    torch.cuda.synchronize()
    return round(start.elapsed_time(end) / repeats, 3)


def loop(lab: Lab) -> Result:
    """The real training loop with its checkpoints: what an epoch costs besides its steps."""
    found: Result = {}
    for size in lab.sizes:
        run = lab.run("mealrec-tedrec", size, "train.epochs=3", "train.patience=9", "engine.precision=tf32")
        folder = lab.folder / f"run-{size}"
        folder.mkdir()
        whole = Loop(run.config, run.loaded, run.engine, folder, EpochReporter(False, 3))
        commits: list[float] = []
        plain = whole._commit

        def commit(sums: Any, plain: Any = plain, commits: list[float] = commits) -> None:
            started = time.perf_counter()
            plain(sums)
            commits.append(time.perf_counter() - started)

        whole._commit = commit  # type: ignore[method-assign]
        started = time.perf_counter()
        whole.run()
        lab.wait()
        lines = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[size] = {
            "wall_s": time.perf_counter() - started, "commit_s": commits,
            "train_s": [line["train_seconds"] for line in lines], "valid_s": [line["valid_seconds"] for line in lines],
        }  # fmt: skip
    return found


def catalogue(lab: Lab, batch_rows: int = 2048, users: int = 64) -> Result:
    """A step of SASRec (width 64), its memory, and exact ranking of 2,048 users, as the catalogue grows."""
    found: Result = {}
    for items in (1000,) if lab.quick else (10**5, 10**6, 10**7):
        if lab.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            found[f"{items:,}"] = _catalogue(lab, items, 16 if lab.quick else batch_rows, users)
        except torch.OutOfMemoryError as error:
            found[f"{items:,}"] = {"error": str(error)[:200]}
    return found


def _catalogue(lab: Lab, items: int, rows: int, users: int) -> Result:
    table = TensorTable(items + 1, {}, {}, {})
    seen = TrainingInteractions(torch.arange(users + 1) * 5, torch.randint(1, items, (users * 5,)))
    model = build("sasrec", SASRecOptions(), ModelContext(table, seen, 10, 1)).to(lab.device)  # type: ignore[union-attr]
    length = torch.randint(1, 11, (rows,))
    history = torch.randint(1, items, (rows, 10)) * (torch.arange(10) < length[:, None])
    batch = Batch(
        torch.zeros(rows, dtype=torch.int64), history, length, torch.randint(1, items, (rows,)), torch.arange(rows),
        torch.zeros(rows, 10, dtype=torch.uint8),
    ).to(lab.device)  # fmt: skip
    row: Result = {}
    for precision in ("fp32", "tf32"):
        config = recipe.load("demo", "sasrec", ["engine.name=torch", f"engine.precision={precision}"], "x")
        engine = TorchEngine(model, config.train, config.engine, lab.device)  # type: ignore[arg-type]
        engine.step([(batch, 1.0)])
        lab.wait()
        started = time.perf_counter()
        for _ in range(3):
            engine.step([(batch, 1.0)])
        lab.wait()
        row[f"step_ms {precision}"] = (time.perf_counter() - started) / 3 * 1e3
        del engine
    if lab.device.type == "cuda":
        row["train_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    with torch.no_grad():
        model.eval()
        vectors = model.user_vectors(batch), model.item_vectors()  # type: ignore[union-attr, operator]
        for _ in range(2):  # the first makes the workspace
            lab.wait()
            started = time.perf_counter()
            exact_ranks(*vectors, batch.target, Histories.of([[1]] * rows))
            lab.wait()
            row["rank_s"] = time.perf_counter() - started
    return row


SPEEDS: dict[str, Callable[[Lab], Result]] = {
    "epochs": epochs, "placements": placements, "compilers": compilers, "loop": loop, "catalogue": catalogue,
}  # fmt: skip
