"""Training with a real Ray Train (two workers, DeepSpeed, ZeRO 1) ends the same, whichever process is killed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from cluster import head, leftovers, preflight, session
from tests.helpers.paths import ROOT
from tests.helpers.run_worker import run_world
from tests.helpers.tiny_runs import MODELS, RUN
from tests.helpers.training_runs import assert_same_end, lines, write_config
from trainer.cli import main
from trainer.config import recipe
from trainer.training.checkpoint import CheckpointStore

EPOCHS, STEPS, EVERY = 3, 8, 3  # steps of an epoch (234 rows / 30), steps between checkpoints
SETTINGS = [
    *MODELS["sasrec"], *RUN, f"train.epochs={EPOCHS}", "train.batch_size=30", f"train.checkpoint_every={EVERY}",
    "train.keep_optimizer=true",
    "cluster.launcher=ray", "cluster.workers=2", "engine.name=deepspeed", "engine.zero_stage=1",
]  # fmt: skip
GONE_S = 30.0
#: processes of Ray itself; when driver and raylet were killed, they sometimes live for another minute (Ray 2.60)
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def command(data: Path, run: Path, *settings: str) -> list[str]:
    """Arguments of `mealrec` for training the run in the folder `run`."""
    places = ["--data", str(data), "--runs-dir", str(run.parent), "--name", run.name]
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return ["train", "--recipe", "demo", "--model", "sasrec", *places, *options]


def train(
    mark: str,
    arguments: Sequence[str],
    *kills: str,
    ray_head: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Train in a new process; return its exit status and its output.

    mark: is put into the environment of its processes, see `head.processes_of`. kills: VICTIM:RANK:STEP, see
    `tests.helpers.ray_training_worker`; each leaves a file of that name beside the folder of runs. ray_head: a head
    that runs; without it the process starts its own Ray.
    """
    program = ["trainer.cli"]
    if kills:
        runs = Path(arguments[arguments.index("--runs-dir") + 1])
        program = ["tests.helpers.ray_training_worker", str(runs.parent), ",".join(kills)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", *program, *arguments],
        cwd=ROOT,
        env={**environment, **(ray_head or {}), head._MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    return done.returncode, done.stdout


def left_of(mark: str, seconds: float) -> list[str]:
    """Wait up to so many seconds for the processes with this mark to end; kill the rest and return their commands.

    Ray's agents are killed as soon as only they are left, and are not returned.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(name.startswith(AGENTS) for name in processes(mark).values()):
        time.sleep(0.2)
    left = processes(mark)
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return [name for name in left.values() if not name.startswith(AGENTS)]


def processes(mark: str) -> dict[int, str]:
    """Commands by pid of the processes with this mark, except processes that are just ending."""
    found = {}
    for pid in head.processes_of(mark):
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {pid: name for pid, name in found.items() if name}


def resumed_at(out: str) -> list[int]:
    return [int(step) for step in re.findall(r"^going on from step (\d+) ", out, re.MULTILINE)]


def committed(steps: int) -> int:
    """The step of the last checkpoint after so many steps."""
    return steps // STEPS * STEPS + steps % STEPS // EVERY * EVERY


def assert_same_weights(a: Path, b: Path) -> None:
    """Compare the weights of the best checkpoint, which was evaluated on the test split."""
    best = []
    for run in (a, b):
        store = CheckpointStore(run / "checkpoints")
        latest = store.latest()
        assert latest is not None
        best.append(store.load(latest.state["stopping"]["best_step"]))
    assert best[0].step == best[1].step
    one, two = best[0].tensors["model"], best[1].tensors["model"]
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which this test's own Rays keep their sessions. Its name is short, as paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="rays-", dir=head.PLACE, ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder, "ray")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, by two processes without Ray."""
    run = tmp_path_factory.mktemp("whole") / "tiny"
    run_world(write_config(recipe.load("demo", "sasrec", SETTINGS, str(data)), run), run, world=2)
    assert [line["step"] for line in lines(run) if line["event"] == "epoch"] == [STEPS, 2 * STEPS, 3 * STEPS]
    return run


@pytest.mark.ray
def test_a_killed_worker_and_then_a_killed_driver_change_nothing(
    data: Path, whole: Path, tmp_path: Path, rays: Path
) -> None:
    """The run is resumed at once, when workers of the killed driver may still live."""
    rng = random.Random(11)
    step = rng.randint(STEPS + 1, 2 * STEPS)
    again_at = committed(step - 1)
    driver_at = rng.randint(2, EPOCHS * STEPS - again_at - 2)  # of the steps of the new worker
    kills = [f"worker:{rng.randrange(2)}:{step}", f"driver:{rng.randrange(2)}:{driver_at}"]
    run, mark = tmp_path / "runs" / "tiny", f"{os.getpid()}-driver"
    status, out = train(mark, command(data, run), *kills)
    assert status == -signal.SIGKILL, out
    assert all((tmp_path / kill).exists() for kill in kills), "nothing was killed"
    assert "2 workers, steps of 30 rows (15 on each), deepspeed engine" in out
    # workers write there what the driver may not have printed when it was killed
    assert resumed_at((run / "ray" / "console.log").read_text()) == [again_at], out
    again = f"{os.getpid()}-again"
    status, out = train(again, [*command(data, run), "--resume"])
    assert left_of(mark, GONE_S) == [], "processes of the killed driver"
    assert status == 0, out
    (first,) = resumed_at(out)
    # the orphans go on until Ray ends them: on a slow machine that can be to the end of the training
    assert committed(again_at + driver_at - 1) <= first <= EPOCHS * STEPS
    assert_same_end(whole, run)
    assert_same_weights(whole, run)
    assert left_of(again, GONE_S) == []
    # `mealrec clean` finds the folders that both Rays left
    left = {mark.parent for mark in rays.glob(f"session_*/{session.MARK}") if not mark.parent.is_symlink()}
    assert len(left) == 2
    assert left <= set(leftovers.of_ended_rays())


@pytest.mark.ray
@pytest.mark.long
def test_kills_again_and_again_change_nothing(
    data: Path, whole: Path, tmp_path: Path, ray_head: dict[str, str]
) -> None:
    """On a head that runs: one worker of each of three commands, and the driver of the first two."""
    rng, run, mark, done = random.Random(21), tmp_path / "runs" / "tiny", f"{os.getpid()}-again", []
    for number in range(3):
        # each attempt has at least one checkpoint's steps to go
        kills = [f"worker:{rng.randrange(2)}:{rng.randint(4, 6)}"]
        kills += [f"driver:{rng.randrange(2)}:{rng.randint(4, 6)}"] if number < 2 else []
        kills = [f"{kill}:{number}{index}" for index, kill in enumerate(kills)]
        status, out = train(mark, [*command(data, run), *(["--resume"] if number else [])], *kills, ray_head=ray_head)
        assert status == (-signal.SIGKILL if number < 2 else 0), out
        assert all((tmp_path / kill).exists() for kill in kills), (kills, out)
        assert left_of(mark, GONE_S) == []
        done += kills
    assert_same_end(whole, run)
    assert_same_weights(whole, run)
    print(f"{len(done)} kills of {len(done)} under Ray changed nothing (seed 21): {done}")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("victim", ["worker-term", "driver-term"])
def test_sigterm_to_a_worker_or_the_driver_commits_and_the_run_goes_on_as_undisturbed(
    data: Path, whole: Path, tmp_path: Path, ray_head: dict[str, str], victim: str
) -> None:
    run, mark = tmp_path / "runs" / "tiny", f"{os.getpid()}-{victim}"
    arguments = command(data, run)
    status, out = train(mark, arguments, f"{victim}:1:{STEPS + 2}", ray_head=ray_head)
    assert status == 75, out
    assert "the same command with --resume goes on" in out
    latest = CheckpointStore(run / "checkpoints").latest()
    assert latest is not None
    assert latest.step >= STEPS + 2
    assert f"SIGTERM: the checkpoint of step {latest.step} is on the disk" in out
    assert not list((run / "ray").glob(".stop-*"))
    status, out = train(mark, [*arguments, "--resume"], ray_head=ray_head)
    assert status == 0, out
    assert resumed_at(out) == [latest.step]
    assert_same_end(whole, run)
    assert_same_weights(whole, run)
    assert left_of(mark, GONE_S) == []


@pytest.mark.ray
@pytest.mark.long
def test_sigterm_to_what_follows_a_job_lets_the_job_save_its_work(data: Path, tmp_path: Path) -> None:
    """`./launch.sh` and containers: the process that started the head gets the signal, the job must not be cut off."""
    run, mark = tmp_path / "runs" / "tiny", f"{os.getpid()}-job"
    job = ["python", "trainer/run.py", *command(data, run, "train.epochs=5000", "train.patience=5000")[1:]]
    follower = subprocess.Popen(
        [sys.executable, "-m", "cluster.jobs", "--cpus", "4", "--", *job], cwd=ROOT, text=True,
        env={**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, head._MARK: mark},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    store, until = CheckpointStore(run / "checkpoints"), time.monotonic() + 300
    while not store.steps() and follower.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    follower.send_signal(signal.SIGTERM)
    out, _ = follower.communicate(timeout=120)
    assert follower.returncode == 75, out
    latest = store.latest()
    assert latest is not None
    assert f"the checkpoint of step {latest.step} is on the disk: the same command with --resume goes on" in out
    assert left_of(mark, GONE_S) == []


def test_a_refused_start_leaves_the_name_free(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "MIN_FREE_BYTES", 1 << 60)
        assert main(command(data, run)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "with a space" / "python"))
        assert main(command(data, run)) == 2
    refused = capsys.readouterr().err
    assert "GB left" in refused
    assert "path with spaces" in refused
    inline = ["cluster.launcher=inline", "cluster.workers=1", "engine.name=torch", "engine.zero_stage=0"]
    assert main(command(data, run, *inline, "train.epochs=1")) == 0
    assert (run / "test.json").exists()
    capsys.readouterr()
    assert main(command(data, run, *inline)) == 2, "now there is something that must not be written over"
    assert "run 'tiny' exists" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_not_taken(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "runs" / "tiny" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for more, said in (([], "run 'tiny' exists"), (["--resume"], "there is no run in")):
        assert main([*command(data, mine.parent), *more]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
