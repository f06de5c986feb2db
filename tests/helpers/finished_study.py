"""A study with a part of every kind of figure, written by hand: finished, failed and unfinished trials."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.metrics.summary import mean_metrics
from tests.helpers.finished_runs import write_run
from trainer.analysis.record import (
    ANALYSIS,
    Analysis,
    Calibration,
    CalibrationBin,
    Case,
    Embedding,
    FrameExample,
    Frames,
    FrameTruth,
    Group,
    Grouping,
    Near,
    Neighbours,
    Point,
)
from trainer.tracking.study_files import FAILURE, STUDY

LAMBDAS, STEPS, SIGMAS = (0.01, 0.1, 0.5), (5, 15, 25), (0.0, 0.1, 0.3, 0.5)


@dataclass
class PlannedTrial:
    """A trial of the study. quality: how good its ranks are, from 0 to 1. state: what its folder says."""

    part: str
    label: str
    system: str
    quality: float
    seed: int = 2020
    factors: Mapping[str, Any] = field(default_factory=dict)
    state: str = "finished"
    tested: bool = True

    @property
    def whole_label(self) -> str:
        """The label as `mealrec study` makes it: with the values of factors."""
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in self.factors.items()}
        return " ".join([self.label, *(f"{key.rpartition('.')[2]}={value}" for key, value in shown.items())])

    @property
    def name(self) -> str:
        return f"{self.part}-{re.sub('[^A-Za-z0-9.]+', '-', self.whole_label).strip('-')}-s{self.seed}"


PARTS = (
    ("table2", "Table 2: all systems", "bars", [], "all"),
    ("ablation", "Ablation", "bars", ["model.backbone"], "all"),
    ("sensitivity", "Sensitivity of TCD", "heatmap", ["model.lambda_tcd", "model.steps"], "chosen"),
    ("noise", "Noise on the content", "lines", ["data.noise"], "all"),
    ("complexity", "Table 3: cost", "complexity", [], "all"),
    ("embedding", "Fig. 7: t-SNE", "embedding", [], "all"),
    ("tune", "Tuned systems", "search", ["train.learning_rate", "model.hidden"], "chosen"),
)


def planned() -> Iterator[PlannedTrial]:
    """All trials."""
    for seed in (2020, 2021, 2022):
        yield PlannedTrial("table2", "mealrec", "mealrec", 0.9, seed)
        yield PlannedTrial("table2", "tedrec", "tedrec", 0.7, seed)
        yield PlannedTrial("table2", "sasrec", "sasrec", 0.5, seed)
    yield PlannedTrial("table2", "popularity", "popularity", 0.1)
    yield PlannedTrial("table2", "m3bsr", "m3bsr", 0, state="failed")
    yield PlannedTrial("table2", "mmgcn", "mmgcn", 0, state="unfinished")
    for backbone, base in (("sasrec", 0.5), ("tedrec", 0.7)):
        for label, more in (("MealRec", 0.2), ("without TCD", 0.12), ("without NPD", 0.1), ("backbone", 0.0)):
            yield PlannedTrial("ablation", label, "mealrec", base + more, factors={"model.backbone": backbone})
    for lambda_ in LAMBDAS:
        for steps in STEPS:
            factors = {"model.lambda_tcd": lambda_, "model.steps": steps}
            quality = 0.6 + 0.1 * (steps / 25) - abs(math.log10(lambda_ / 0.1)) * 0.15
            yield PlannedTrial(
                "sensitivity", "mealrec", "mealrec", quality, factors=factors,
                tested=factors == {"model.lambda_tcd": 0.1, "model.steps": 25},
            )  # fmt: skip
    for sigma in SIGMAS:
        for label, slope in (("mealrec", 0.2), ("tedrec", 0.5)):
            yield PlannedTrial("noise", label, label, 0.8 - slope * sigma, factors={"data.noise": sigma})
    for label in ("tedrec", "mealrec"):
        yield PlannedTrial("complexity", label, label, 0.8)
    yield PlannedTrial("embedding", "mealrec", "mealrec", 0.8)
    for place, (rate, hidden) in enumerate(((0.001, [64, 128]), (0.003, [32, 64]), (0.0003, [64, 128]))):
        factors = {"train.learning_rate": rate, "model.hidden": hidden}
        yield PlannedTrial(
            "tune", "sasrec", "sasrec", 0.4 + 0.1 * place, factors=factors, tested=place == 2
        )  # fmt: skip


def write_study(folder: Path, data: Path | None = None, users: int = 8, only: Sequence[str] = ()) -> Path:
    """Write the study. data: its dataset; users: of every run. only: names of its parts (default: all)."""
    trials = [trial for trial in planned() if not only or trial.part in only]
    content = {
        "version": 1, "name": folder.name, 
        "command": f"mealrec study --plan paper --name {folder.name} --data data/demo",
        "plan": "paper", "about": "Is MealRec better, why, how sure, and at what cost?",
        "created": "2026-11-27T09:00:00+00:00", "metric": "NDCG@10", "datasets": {"demo": str(data or "data/gone")},
        "parts": [
            dict(zip(("name", "title", "figure", "factors", "test"), part, strict=True))
            for part in PARTS
            if not only or part[0] in only
        ],
        "trials": [
            {
                "name": each.name, "part": each.part, "system": each.system, "label": each.whole_label,
                "dataset": "demo", "seed": each.seed, "factors": each.factors, "run": each.name,
            }
            for each in trials
        ],
        "left_out": [{"part": "table2", "system": "iisan", "dataset": "demo", "why": "<demo> has no visual_layers"}],
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / STUDY).write_text(json.dumps(content))
    for trial in trials:
        _write(folder / trial.name, trial, users)
        if trial.part == "embedding":
            (folder / trial.name / ANALYSIS).write_text(some_analysis(trial.name).model_dump_json())
    return folder


def some_analysis(run: str) -> Analysis:
    """An analysis with everything in it, by hand."""
    figures = {"HR@10": 0.25, "NDCG@10": 0.125}
    group = Group(label="all", users=8, share=1.0, metrics=figures, interval=figures, against={})
    parts = tuple(group.model_copy(update={"label": label, "users": 4, "share": 0.5}) for label in ("2", "3-4"))
    case = Case(user="u1", history=("<b>first</b>", "second"), target="third & last", rank=30, expected=0.9,
                shown=("fourth",), target_count=5)  # fmt: skip
    near = Near(name="fifth", similarity=0.5)
    points = [
        Point(kind=kind, x=float(place), y=float(place % 3), title="<i>title</i>", focus=focus, frame=frame)
        for place, (kind, focus, frame) in enumerate(
            [("user", 0, 0), ("user", -1, 0), ("target", 0, 0), ("target", -1, 0), ("frame", 0, 1), ("frame", 0, 2)]
        )
    ]
    return Analysis(
        run=run, system="mealrec", dataset="demo", command=f"mealrec analyse --run {run}", against=None,
        keys=tuple(figures), users=8, sampled=8, overall=group,
        groupings=(Grouping(name="history", title="Length of the history", about="How long.", groups=parts),),
        calibration=Calibration(
            k=10, users=8, temperature=0.5, error=0.1,
            bins=tuple(CalibrationBin(users=4, expected=e, hit_rate=h) for e, h in ((0.1, 0.2), (0.5, 0.4))),
        ),
        confident_misses=(case,), lucky_hits=(case.model_copy(update={"rank": 2}),),
        neighbours=(Neighbours(user="u1", history=("first",), target="third", items=(near,), users=(near,)),),
        frames=Frames(
            kind="frames", users=8, change=(0.1, 0.2), influence=(0.01, 0.02),
            truth={"influence": FrameTruth(on=0.02, off=0.01, separation=0.75)},
            examples=(FrameExample(title="first", change=(0.1, 0.2), influence=(0.0, 0.1), on_topic=(True, False)),),
        ),
        embedding=Embedding(users=2, perplexity=1.0, seed=0, distance=0.8, points=tuple(points)),
    )  # fmt: skip


def _write(folder: Path, trial: PlannedTrial, users: int) -> None:
    if trial.state != "finished":
        folder.mkdir()
        _log(folder, trial, 1)
        if trial.state == "failed":
            failure = {"message": "out of memory in a step of 2048 rows", "kind": "OutOfMemoryError",
                       "peak_memory_mib": 81234.5, "when": "2026-11-27T09:30:00+00:00"}  # fmt: skip
            (folder / FAILURE).write_text(json.dumps(failure))
        return
    rng = np.random.default_rng([len(trial.label), trial.seed])
    hard = np.random.default_rng(0).random(users)
    ranks = 1 + np.floor(60 * np.clip(hard + 0.35 - 0.4 * trial.quality + 0.05 * rng.random(users), 0, 2) ** 2)
    columns = {"user": np.arange(users), "target": np.arange(users) + 100, "rank": ranks.astype(int),
               "rank_masked": np.maximum(1, ranks.astype(int) - 1), "cold": np.arange(users) % 10 == 3}  # fmt: skip
    write_run(folder, trial.system, seed=trial.seed, **columns)
    valid = {**mean_metrics(ranks.astype(int)), "epoch": 3, "seed": trial.seed, "inference": "default"}
    (folder / "valid.json").write_text(json.dumps(valid))
    if not trial.tested:
        (folder / "test.json").unlink()
        (folder / "ranks-test.npz").unlink()
    _log(folder, trial, 6)


def _log(folder: Path, trial: PlannedTrial, epochs: int) -> None:
    cost = {"mealrec": 1.9, "tedrec": 1.2, "iisan": 180.0}.get(trial.system, 0.6)
    lines = [
        {
            "event": "epoch", "epoch": epoch, "step": 10 * epoch, "time": 1e9 + epoch,
            "metrics": {
                "loss": {"ranking": 7.0 * 0.9**epoch + trial.quality / 10},
                "valid": {"NDCG@10": trial.quality * (1 - 0.6**epoch) / 10, "HR@10": trial.quality / 5},
                "rows_per_second": 100.0, "train_seconds": cost * (1 + 0.01 * epoch), "valid_seconds": cost / 3,
                "checkpoint_seconds": 0.1,
            },
        }
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    if epochs > 1:
        lines.append({"event": "end", "epoch": epochs, "step": 10 * epochs, "time": 1e9 + epochs,
                      "metrics": {"peak_memory_mib": 900 * cost}})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
