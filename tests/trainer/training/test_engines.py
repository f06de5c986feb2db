"""Both engines with 1, 2 and 4 processes: equal losses and weights, exchange of checkpoints, bad steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.engine_worker import HALF, STEPS, Job, losses_of, raised, run_jobs, state_of
from trainer.training.groups import Groups

WORLDS = (1, 2, 4)
NAN, INF = math.nan, math.inf
REFERENCE = "1-torch0-acc1"


def _job(name: str, **options: Any) -> Job:
    """A job from its name: number of processes, engine and ZeRO stage, and what it tests."""
    _, engine, about = name.split("-", 2)
    if about.startswith("acc"):
        options["accumulation"] = int(about[3])
    return Job(name, engine=engine[:-1], stage=int(engine[-1]), **options)  # type: ignore[arg-type]


#: jobs from the start; each name begins with the number of processes
STRAIGHT = [
    *map(_job, [REFERENCE, "1-torch0-acc2", "1-deepspeed0-acc1", "1-deepspeed1-acc2", "1-deepspeed2-acc1",
                "1-deepspeed3-acc1", "2-torch0-acc1", "2-torch0-acc2", "2-deepspeed0-acc2", "2-deepspeed1-acc1",
                "2-deepspeed2-acc1", "2-deepspeed3-acc2", "4-torch0-acc2", "4-deepspeed2-acc2"]),
    *(_job(f"{name}-clip", clip=0.05, keep=()) for name in ("1-torch0", "1-deepspeed2", "2-torch0", "2-deepspeed0",
                                                   "2-deepspeed2")),
    *(_job(f"{name}-unused", unused=True) for name in ("1-torch0", "2-deepspeed2")),
    *(_job(f"{name}-bf16", precision="bf16") for name in ("1-torch0", "1-deepspeed2")),
]  # fmt: skip
#: jobs with a step that is not finite
SPOILT = [
    *(_job(f"{name}-features", spoil="features", value=NAN) for name in ("1-torch0", "1-deepspeed2", "2-deepspeed0")),
    *(_job(f"{name}-loss", spoil="loss", value=INF) for name in ("1-torch0", "2-deepspeed2")),
    *(_job(f"2-{name}-nan", spoil="gradient", value=NAN) for name in ("torch0", "deepspeed1", "deepspeed3")),
    *(_job(f"2-{name}-inf", spoil="gradient", value=INF, clip=1.0) for name in ("torch0", "deepspeed2")),
]
AGAIN = ["1-torch0-acc1", "1-deepspeed2-acc1", "2-torch0-acc2", "2-deepspeed0-acc2", "2-deepspeed1-acc1",
         "2-deepspeed3-acc2"]  # fmt: skip
#: (job whose half-way state is loaded, kind of job that loads it)
CROSS = [
    ("1-torch0", "2-deepspeed2-acc1"), ("1-deepspeed2", "1-torch0-acc1"),
    ("1-deepspeed3", "4-torch0-acc2"), ("2-torch0", "1-deepspeed3-acc1"), ("2-deepspeed1", "4-deepspeed2-acc2"),
    ("2-deepspeed2", "1-torch0-unused"), ("1-torch0", "2-deepspeed2-unused"), ("2-deepspeed3", "2-deepspeed0-acc2"),
    ("4-torch0", "2-torch0-acc1"), ("4-deepspeed2", "2-deepspeed1-acc1"),
]  # fmt: skip
TAKEN_OVER = [
    *(_job(f"{name}-again", load=name) for name in AGAIN),
    *(_job(f"{name}-from-{source}", load=source, unused=source.endswith("unused")) for name, source in CROSS),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all jobs once: first those from the start, then those that load a state."""
    out = tmp_path_factory.mktemp("engines")
    loaded = {REFERENCE, *(job.load for job in TAKEN_OVER)}
    straight = [job if job.name in loaded else replace(job, keep=job.keep[-1:]) for job in STRAIGHT]
    for jobs in ([*straight, *SPOILT], TAKEN_OVER):
        for world in WORLDS:
            run_jobs(out, world, [job for job in jobs if job.name.startswith(str(world))])
    return out


def plain(kind: str) -> list[str]:
    return [job.name for job in STRAIGHT if job.name.endswith(kind)]


def assert_close(a: Groups, b: Groups, tolerance: float) -> None:
    for group in a:
        assert a[group].keys() == b[group].keys()
        for name, value in a[group].items():
            assert torch.allclose(value, b[group][name], rtol=tolerance, atol=tolerance), name


def relative(a: list[list[float]], b: list[list[float]], least: float = 0.0) -> float:
    """The largest error of a value of `a`, as a share of that of `b`, or of `least` where that is larger."""
    assert len(a) == len(b)
    return max(
        abs(x - y) / max(abs(y), least) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def test_the_reference_learns(folder: Path) -> None:
    losses = losses_of(folder, REFERENCE)
    assert len(losses) == STEPS
    assert [len(terms) for terms in losses] == [3] * STEPS  # npd, ranking, tcd
    before, after = state_of(folder, REFERENCE, "half")["model"], state_of(folder, REFERENCE)["model"]
    assert all(torch.isfinite(value).all() for value in after.values())
    assert sum(not torch.equal(before[name], after[name]) for name in after) > len(after) / 2


@pytest.mark.parametrize("name", plain("-acc1") + plain("-acc2"))
def test_engines_and_worlds_agree(folder: Path, name: str) -> None:
    assert relative(losses_of(folder, name), losses_of(folder, REFERENCE)) < 1e-6
    assert_close(state_of(folder, name), state_of(folder, REFERENCE), 2e-5)


@pytest.mark.parametrize("kind", ["-clip", "-unused"])
def test_clipping_and_unused_parameters_agree(folder: Path, kind: str) -> None:
    reference = losses_of(folder, f"1-torch0{kind}")
    assert reference != losses_of(folder, REFERENCE)
    for name in plain(kind):
        assert relative(losses_of(folder, name), reference) < 1e-6, name


def test_bf16_is_close_and_is_not_fp32(folder: Path) -> None:
    for name in plain("-bf16"):
        assert 1e-5 < relative(losses_of(folder, name), losses_of(folder, REFERENCE)) < 0.05, name
        assert {value.dtype for value in state_of(folder, name)["model"].values()} == {torch.float32}


@pytest.mark.parametrize("name", AGAIN)
def test_a_resume_of_equal_size_is_bit_identical(folder: Path, name: str) -> None:
    assert losses_of(folder, f"{name}-again") == losses_of(folder, name)[HALF:]
    straight, resumed = state_of(folder, name), state_of(folder, f"{name}-again")
    for group in straight:
        assert straight[group].keys() == resumed[group].keys()
        assert all(torch.equal(value, resumed[group][key]) for key, value in straight[group].items())


@pytest.mark.parametrize("job", [job for job in TAKEN_OVER if "-from-" in job.name], ids=lambda job: job.name)
def test_states_fit_other_engines_and_worlds(folder: Path, job: Job) -> None:
    reference = "1-torch0-unused" if job.unused else REFERENCE
    assert relative(losses_of(folder, job.name), losses_of(folder, reference)[HALF:]) < 1e-6
    if not job.unused:
        assert_close(state_of(folder, job.name), state_of(folder, REFERENCE), 2e-5)


@pytest.mark.parametrize("job", SPOILT, ids=lambda job: job.name)
def test_a_step_that_is_not_finite_stops_every_rank_before_the_update(folder: Path, job: Job) -> None:
    assert raised(folder, job.name, int(job.name[0])) == [True] * int(job.name[0])
    before, after = state_of(folder, job.name, "before"), state_of(folder, job.name)
    assert all(torch.equal(value, after["model"][key]) for key, value in before["model"].items())
    assert all(torch.equal(value, after["optimizer"][key]) for key, value in before["optimizer"].items())
