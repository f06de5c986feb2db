"""The checks of benchmarks/gpu.py: is what a GPU computes right, the same each time, and without waiting?

Each returns figures, and under "wrong" what must not be; an empty "wrong" is a pass.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from bench_models import Training
from benchmark import MODELS
from gpu_lab import SYSTEMS, Lab

from models.errors import UserError
from models.nn.noise import KeyedNoise, Stream
from trainer.evaluation.evaluate import evaluate
from trainer.training.build import load_weights
from trainer.training.engine import NonFiniteError, TrainingPass

Result = dict[str, Any]

#: settings that turn off everything that draws from torch's generators, which differ between devices
_NO_DROPOUT = {
    "sasrec": ("attention", "hidden"), "tedrec": ("attention", "hidden", "adaptor"),
}  # fmt: skip
#: largest relative error of a gradient against float64 on the CPU
_TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}


def _without_dropout(name: str) -> list[str]:
    if name.startswith("mealrec-"):
        backbone = name.removeprefix("mealrec-")
        of_backbone = [f"model.{backbone}.{kind}_dropout=0" for kind in _NO_DROPOUT[backbone]]
        return [*of_backbone, "model.tcd.dropout=0", "model.npd.dropout=0"]
    return [f"model.{kind}_dropout=0" for kind in _NO_DROPOUT[name]]


def parity(lab: Lab) -> Result:
    """Loss and gradient of one batch against the CPU in float64; noise bit for bit."""
    found: Result = {"wrong": []}
    key = torch.arange(1000) * 7919
    steps = [KeyedNoise(1).integers(key.to(d), 1, 25, Stream.TCD_STEP).cpu() for d in ("cpu", lab.device)]
    noise = [KeyedNoise(1).normal(key.to(d), (33,), Stream.TCD_NOISE).cpu() for d in ("cpu", lab.device)]
    found["largest difference of noise"] = float((noise[0] - noise[1]).abs().max())
    if not torch.equal(*steps) or found["largest difference of noise"] > 1e-5:
        found["wrong"].append("keyed noise differs from the CPU's")
    for name in SYSTEMS:
        loss, gradient = _first_gradient(lab, name, "fp32", double=True)
        for precision, tolerance in _TOLERANCE.items():
            own_loss, own = _first_gradient(lab, name, precision)
            error = float((own - gradient).norm() / gradient.norm())
            found[f"{name} {precision}"] = {"loss": abs(own_loss / loss - 1), "gradient": error}
            if not error <= tolerance:
                found["wrong"].append(f"gradient of {name} in {precision}: relative error {error:.1e}")
    return found


def _first_gradient(lab: Lab, name: str, precision: str, *, double: bool = False) -> tuple[float, torch.Tensor]:
    settings = (*_without_dropout(name), f"engine.precision={precision}")
    if double:
        model, loaded = lab.reference(name, "tiny", *settings)
        forward = TrainingPass(model, precision)
    else:
        run = lab.run(name, "tiny", *settings)
        model, loaded, forward = run.model, run.loaded, run.engine.training_pass
    model.train()
    rows = np.arange(min(256, loaded.training_rows.count))
    total, _ = forward(loaded.training_rows.batch(1, rows))
    total.backward()
    gradient = torch.cat([p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None])
    return float(total.detach()), gradient


def every_system(lab: Lab) -> Result:
    """Two steps and an evaluation in each way of encoding users, of every system, in every precision."""
    found: Result = {"wrong": [], "systems": [], "left out": []}
    for name, precision in itertools.product(MODELS, ("fp32", "tf32", "bf16")):
        where, said = _tried(lab, name, precision)
        line = f"{name}{said}" if where == "left out" else f"{name} {precision}{said}"
        if line not in found[where]:
            found[where].append(line)
    return found


def _tried(lab: Lab, name: str, precision: str) -> tuple[str, str]:
    """Where to list the system, and what to say of it."""
    try:
        _train_and_evaluate(lab.run(name, "tiny", f"engine.precision={precision}"))
    except UserError as error:  # the random data lacks what the system is made of
        return "left out", f": {str(error)[:80]}"
    except Exception as error:  # the next system is to be tried as well
        return "wrong", f": {type(error).__name__}: {str(error)[:160]}"
    return "systems", ""


def _train_and_evaluate(run: Training) -> None:
    run.run(2)
    run.engine.check()
    with run.engine.whole() as whole:
        for way in whole.inference_choices:
            whole.inference = way
            evaluate(whole, run.loaded, "validation", run.config.eval)


def guard(lab: Lab) -> Result:
    """A step that is not finite must leave the weights alone, then and later, and be told by `check`."""
    wrong = []
    for how in ("never", "always") if lab.device.type == "cuda" else ("never",):
        run = lab.run("sasrec", "tiny", f"engine.cuda_graphs={how}")
        run.run(4)
        before = _weights(run)
        entry = next(run.model.parameters()).data[1, :1]
        kept = entry.clone()
        entry.fill_(float("nan"))
        with contextlib.suppress(NonFiniteError):  # a CPU tells at once
            run.run(1)
        entry.copy_(kept)
        if lab.device.type == "cuda":
            run.run(2)  # skipped as well
        if not torch.equal(before, _weights(run)):
            wrong.append(f"cuda_graphs={how}: a bad step changed the weights")
        try:
            run.engine.check()
            wrong.append(f"cuda_graphs={how}: check() did not tell")
        except NonFiniteError:
            pass
    return {"wrong": wrong}


def determinism(lab: Lab) -> Result:
    """The weights after eight steps, twice, and once resumed after four: equal bit for bit."""
    found: Result = {"wrong": []}
    for name, make in _trained(lab):
        whole = _weights(_after(make(), 8))
        half = _after(make(), 4)
        resumed = make()
        state = half.engine.state()
        load_weights(resumed.model, state["model"])
        resumed.engine.load_optimizer(state["optimizer"])
        resumed.done = half.done
        resumed.run(4)
        again = _weights(_after(make(), 8))
        found[name] = {
            "again": float((whole - again).abs().max()), "resumed": float((whole - _weights(resumed)).abs().max())
        }  # fmt: skip
        found["wrong"] += [f"{name} {how}: {error:.1e} after 8 steps" for how, error in found[name].items() if error]
    return found


_HOW = {
    "eager": ("engine.cuda_graphs=never",), "graph": (),
    "graph, any order": ("engine.deterministic=false",),
}  # fmt: skip


def graphs(lab: Lab) -> Result:
    """Two epochs by CUDA graphs against two without: equal weights and losses bit for bit; milliseconds of a step."""
    if lab.device.type != "cuda":
        return {"missing": "needs a GPU"}
    found: Result = {"wrong": []}
    for name, make in _trained(lab):
        runs = {how: make(*settings) for how, settings in _HOW.items()}
        row: Result = {}
        for how, run in runs.items():
            run.run(run.plan.steps + 3)
            lab.wait()
            started = time.perf_counter()
            run.run(run.plan.steps)
            lab.wait()
            row[f"ms {how}"] = round(1e3 * (time.perf_counter() - started) / run.plan.steps, 2)
        plain, recorded = runs["eager"], runs["graph"]
        row["weights"] = float((_weights(plain) - _weights(recorded)).abs().max())
        row["losses"] = max(abs(float(plain.sums[key] - recorded.sums[key])) for key in plain.sums)
        row["said"] = recorded.engine.remarks
        found[name] = row
        if row["weights"] or row["losses"]:
            found["wrong"].append(f"{name}: weights differ by {row['weights']:.1e}, losses by {row['losses']:.1e}")
    return found


#: settings of the plain engine whose steps are made of other operations
_VARIANTS = {
    "sasrec, negatives": ("model.ranking.negatives=512",),
    "sasrec, lazy_adam": ("model.ranking.negatives=512", "train.lazy_adam=true"),
}  # fmt: skip


def _trained(lab: Lab) -> Iterator[tuple[str, Callable[..., Training]]]:
    """Each system that this data allows, and some with other settings, by what makes a run of it."""
    size = "tiny" if lab.quick else "small"
    for name in (*MODELS, *_VARIANTS):
        make = partial(lab.run, name.split(",")[0], size, *_VARIANTS.get(name, ()))
        try:
            make()
        except UserError:  # as in `every_system`
            continue
        yield name, make


def _after(run: Training, steps: int) -> Training:
    run.run(steps)
    return run


def _weights(run: Training) -> torch.Tensor:
    """All weights in one float64 vector on the CPU."""
    return torch.cat([p.detach().flatten().cpu().double() for p in run.model.parameters()])


def waits(lab: Lab) -> Result:
    """Every place where the host waits for the device within a step."""
    if lab.device.type != "cuda":
        return {"missing": "a CPU does not wait"}
    found: Result = {"wrong": []}
    for name in SYSTEMS:
        run = lab.run(name, lab.sizes[0])
        run.run(3)
        lab.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                run.run(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        places = Counter(f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
        found[name] = dict(places)
        if places:
            found["wrong"].append(f"{name} waits at {', '.join(places)}")
    return found


CHECKS: dict[str, Callable[[Lab], Result]] = {
    "parity": parity, "systems": every_system, "guard": guard, "determinism": determinism, "graphs": graphs,
    "waits": waits,
}  # fmt: skip
