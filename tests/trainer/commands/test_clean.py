"""`mealrec clean`: what it lists, what it removes, and what it never touches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import head, session
from retrieval.files import sole_writer
from tests.helpers.paths import ROOT
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main
from trainer.training.checkpoint import CheckpointStore

SETTINGS = [part for setting in (*MODELS["sasrec"], *RUN) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its optimizer's state."""
    root = tmp_path_factory.mktemp("clean")
    make_dataset(root / "data")
    assert train(root, "kept", "--set", "train.keep_optimizer=true") == 0
    return root


def train(root: Path, name: str, *more: str) -> int:
    return main(["train", "--recipe", "demo", "--model", "sasrec", "--name", name, "--data", str(root / "data"),
                 "--runs-dir", str(root / "runs"), *SETTINGS, *more])  # fmt: skip


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with its own home and place for Ray, and the runs: kept (asked to), old (as earlier versions
    left runs), part (not finished), and something else.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(head, "PLACE", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for name in ("kept", "old", "part"):
        shutil.copytree(trained / "runs/kept", tmp_path / "runs" / name)
    old = tmp_path / "runs/old/config.yaml"
    old.write_text(old.read_text().replace("keep_optimizer: true", "keep_optimizer: false"))
    metrics = tmp_path / "runs/part/metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if '"epoch", ' in line))
    assert [json.loads(line)["event"] for line in metrics.read_text().splitlines()] == ["epoch", "epoch"]
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/notes/mine.txt").write_text("mine")
    return tmp_path


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_it_lists_first_and_removes_only_what_a_finished_run_does_not_need(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(home)
    assert main(["clean"]) == 0
    out = capsys.readouterr().out
    assert content(home) == before
    assert "  old: 1 optimizer states" in out or "  old: 2 optimizer states" in out
    assert "Nothing is removed yet: add --yes to remove it" in out
    assert "left alone    kept: train.keep_optimizer=true asks" in out
    assert "left alone    part: it has not finished" in out
    config = home / "runs/kept/config.yaml"
    text = config.read_text()
    config.write_bytes(b"a: &x 1\nb: *x")
    assert main(["clean"]) == 0
    assert "left alone    kept: runs/kept/config.yaml: it is not YAML that is read: aliases" in capsys.readouterr().out
    config.write_text(text)
    assert main(["clean", "--yes"]) == 0
    after = content(home)
    gone = {name for name in before if name not in after}
    assert gone
    assert all(name.startswith("runs/old/checkpoints/") for name in gone)
    changed = {name for name in after if before.get(name) != after[name]}
    assert all(name.startswith("runs/old/checkpoints/") and name.endswith("manifest.json") for name in changed)
    freed = sum(len(before[name]) for name in gone) / 1e6
    assert f"{freed:,.1f} MB  freed" in capsys.readouterr().out
    assert main(["clean"]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_a_cleaned_run_is_evaluated_exported_and_compared_and_says_why_it_does_not_go_on(
    home: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name in ("old", "kept"):
        assert main(["clean", "--yes", "old"]) == 0
        assert main(["evaluate", "--run", name, "--data", str(trained / "data"), "--out", f"{name}.json"]) == 0
        reports.append({**json.loads(Path(f"{name}.json").read_text()), "seconds": 0})
    assert reports[0] == reports[1]
    assert main(["export", "--run", "old", "--data", str(trained / "data"), "--out", "out"]) == 0
    assert main(["compare", "old", "kept"]) == 0
    shutil.copytree(trained / "data", home / "data")
    before = content(home / "runs/old")
    capsys.readouterr()
    assert train(home, "old", "--resume", "--set", "train.epochs=9") == 2
    err = capsys.readouterr().err
    assert f"{home}/runs/old cannot be trained on after epoch 2" in err
    assert "removed at its end or by `mealrec clean`. Train again under another --name" in err
    assert content(home / "runs/old") == before
    assert train(home, "kept", "--resume", "--set", "train.epochs=3", "--set", "train.keep_optimizer=true") == 0


def test_runs_that_train_and_that_have_not_finished_are_left_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(home)
    with sole_writer(home / "runs/old"):
        code = (
            "import sys; from trainer.cli import main\n"
            "sys.exit(main(['clean', '--yes', 'old', 'part', '--runs-dir', sys.argv[1]]))"
        )
        command = [sys.executable, "-c", code, str(home / "runs")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "old: it is being trained" in done.stdout
    assert "part: it has not finished" in done.stdout
    assert content(home) == before
    assert main(["clean", "--unfinished"]) == 2
    assert main(["clean", "nothing"]) == 2
    assert "there is no run 'nothing'" in capsys.readouterr().err
    assert main(["clean", "part", "--unfinished", "--yes"]) == 0
    latest = CheckpointStore(home / "runs/part/checkpoints").latest()
    assert latest is not None
    assert latest.tensors.keys() == {"model"}


KILLED = """
import os, signal, sys
from pathlib import Path
from retrieval.folders import whole_folder
with whole_folder(Path(sys.argv[1])) as new:
    (new / "half").write_bytes(b"x" * 1000)
    if sys.argv[2] == "kill": os.kill(os.getpid(), signal.SIGKILL)
    print("making", flush=True)
    sys.stdin.read()
"""


def test_what_killed_commands_left_goes_and_that_of_the_living_stays(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".data.partial-0123abcd").mkdir()  # looks like ours, but no lock says so
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run([*command, str(home / "data/killed"), "kill"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    living = subprocess.Popen([*command, str(home / "export/living"), "stay"], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert living.stdout
    assert living.stdout.readline() == b"making\n"
    assert main(["clean", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "data/killed: left by a killed command" in out
    assert "living" not in out
    assert list((home / "data").iterdir()) == []
    living.communicate()
    assert living.returncode == 0
    assert (home / "export/living/half").exists()
    assert (home / ".data.partial-0123abcd").exists()


def test_folders_of_ended_rays_go_and_no_others(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, hour = home / "tmp", time.time() - 3600
    for name in ("mealrec-abcd1234", "mealrec-bcde2345", "mealrec-venv-XYZ123", "mealrec-cdef3456", "other-abcd1234"):
        (place / name).mkdir()
        if "venv" not in name:
            (place / name / head.LOG).write_text("log")
            os.utime(place / name / head.LOG, (hour, hour))
    (place / "mealrec-cdef3456" / head.LOG).touch()  # it is starting
    for name in ("session_ended", "session_other", "session_lives"):
        (place / "ray" / name).mkdir(parents=True)
        if name != "session_other":
            (place / "ray" / name / session.MARK).touch()
    (place / "ray/session_latest").symlink_to("session_ended")
    sleep = "import time; print('up', flush=True); time.sleep(100)"
    running = [
        subprocess.Popen([sys.executable, "-c", sleep, f"--session-dir={place}/ray/session_lives"],
                         stdout=subprocess.PIPE),
        subprocess.Popen([sys.executable, "-c", sleep], env={**os.environ, head._MARK: "mealrec-bcde2345"},
                         stdout=subprocess.PIPE),
    ]  # fmt: skip
    try:
        assert all(each.stdout and each.stdout.readline() for each in running)
        assert main(["clean", "--yes"]) == 0
    finally:
        for each in running:
            each.kill()
            each.communicate()
    out = capsys.readouterr().out
    assert out.count("of a Ray that has ended") == 2, out
    assert {path.name for path in place.iterdir()} == {
        "mealrec-bcde2345", "mealrec-venv-XYZ123", "mealrec-cdef3456", "other-abcd1234", "ray"
    }  # fmt: skip
    assert {path.name for path in (place / "ray").iterdir()} == {"session_other", "session_lives", "session_latest"}


def test_the_list_needs_no_torch(home: Path) -> None:
    code = "import sys; from trainer import cli; cli.main(['clean']); print({'torch', 'ray'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.endswith("set()\n"), done.stdout
