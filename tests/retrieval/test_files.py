"""Files and folders are complete or unchanged whichever system call fails; only one writer per folder; checksums."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from retrieval import files, folders
from retrieval.files import Digest, digest, digest_file, sole_writer, whole_file, write_bytes, write_json
from retrieval.folders import present, scratch_folder, whole_folder
from tests.helpers.killed_at_calls import killed_at
from tests.helpers.paths import ROOT
from tests.helpers.tiny_runs import fork_server

HOLD = """
import sys, time
from pathlib import Path
from retrieval.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def write(out: Path, text: str) -> None:
    with whole_folder(out, replace=True) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


class FailAt:
    """Calls the real function, but raises at its n-th call (from 1)."""

    def __init__(self, function: Any, n: int) -> None:
        self.function, self.left = function, n

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(5, "Input/output error")
        return self.function(*arguments)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("call", "n"), [*(("fsync", n) for n in (1, 2, 3, 4)), ("rename", 1), ("rename", 2)])
def test_any_failing_call_leaves_the_old_or_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int, older: bool, exchanges: bool
) -> None:
    """exchanges: whether the file system can exchange two folders at once."""
    if not exchanges:
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    out = tmp_path / "out"
    if older:
        write(out, "old")
    owner: Any = os if call == "fsync" else Path
    failing = FailAt(getattr(owner, call), n)
    monkeypatch.setattr(owner, call, lambda *arguments: failing(*arguments))
    renames = 2 - exchanges * 2 if older else 1  # an exchange is none
    happens = call == "fsync" or n <= renames
    try:
        write(out, "new")
        failed = False
    except (OSError, UserError):  # UserError: the disk that fails is told
        failed = True
    assert failed == happens
    # the last fsync, of the parent folder, comes after the rename, so the new folder is complete
    expected = "new" if not failed or (call, n) == ("fsync", 4) else "old" if older else None
    if expected is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert {path.name: path.read_text() for path in out.iterdir()} == {"a": expected, "b": expected}


@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_call_the_old_or_the_new_folder_can_be_read(tmp_path: Path, exchanges: bool) -> None:
    found = []
    for call in itertools.count(1):
        out = tmp_path / str(call) / "out"
        write(out, "old")
        if not killed_at(call, exchanges, write, out, "new"):
            break
        found.append({path.read_text() for path in present(out).iterdir()})
        assert out.exists() or not exchanges
        write(out, "newer")  # what the killed one left is no hindrance, and goes
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        assert {path.read_text() for path in out.iterdir()} == {"newer"}
    assert found[0] == {"old"}
    assert found[-1] == {"new"}
    assert all(texts in ({"old"}, {"new"}) for texts in found)


def test_left_overs_of_a_killed_maker_do_not_block_and_the_living_are_left_alone(tmp_path: Path) -> None:
    """A maker of data/one, killed: its folders are gone after the next start there, and data itself is empty."""
    data, ready = tmp_path / "data", tmp_path / "ready"
    process = fork_server().Process(target=_make_slowly, args=(data / "one", ready))
    process.start()
    _wait(ready)
    left = sorted(path.name.partition("-")[0] for path in data.iterdir())
    assert left == [".one.features", ".one.mealrec", ".one.partial"]
    for out in (data / "one", data):
        with pytest.raises(UserError, match=r"another process is making .*one"), whole_folder(out):
            pass
    assert len(list(data.iterdir())) == 3, "nothing of the living was touched"
    process.kill()
    process.join()
    mine = data / ".one.partial-mine"
    mine.write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"), whole_folder(data):
        pass
    assert mine.read_text() == "mine"
    mine.unlink()
    with whole_folder(data) as new:
        (new / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir() if path != ready] == ["data"]
    assert [path.name for path in data.iterdir()] == ["a"]


def _make_slowly(out: Path, ready: Path) -> None:
    with scratch_folder(out), whole_folder(out):
        ready.touch()
        time.sleep(60)


def _wait(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_error_of_the_writer_leaves_the_older_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", replace=True) as new:  # noqa: PT012
        (new / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_with_content_and_places_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="is not an empty folder"), whole_folder(tmp_path / "out"):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="cannot make"), whole_folder(tmp_path / "file" / "below"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_and_files_below_folders_are_synced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as new:
        (new / "below").mkdir()
        (new / "below" / "a").write_text("deep")
    assert (tmp_path / "out" / "below" / "a").read_text() == "deep"
    assert (tmp_path / "out").stat().st_mode & 0o055 == 0o055 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("call", "n"), [("fsync", 1), ("fsync", 2), ("write", 1), ("replace", 1)])
def test_a_file_is_as_before_or_as_wanted_whichever_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int
) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    owner: Any = Path if call == "replace" else os
    failing = FailAt(getattr(owner, call), n)
    monkeypatch.setattr(owner, call, lambda *arguments: failing(*arguments))
    with pytest.raises(OSError, match="Input/output error"):
        write_bytes(path, b"new")
    # the second fsync is that of the folder, after the rename
    assert path.read_bytes() == (b"new" if (call, n) == ("fsync", 2) else b"old")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is writing"), sole_writer(tmp_path, wait_s=0.3):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with sole_writer(tmp_path, wait_s=5):
        write_json(tmp_path / "a.json", {"b": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert not list(tmp_path.glob(".a.json*"))


def test_checksums_are_those_of_sha256(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(data)
    passing = Digest()
    for start in range(0, len(data), 70_001):
        passing.update(data[start : start + 70_001])
    found = digest_file(tmp_path / "a")
    assert found.sha256 == passing.sha256 == digest(data) == hashlib.sha256(data).hexdigest()
    assert found.size == passing.size == len(data)
    assert digest("\u00e9") == hashlib.sha256("\u00e9".encode()).hexdigest()


def test_a_large_file_is_there_whole_and_what_was_killed_is_removed(tmp_path: Path) -> None:
    path, left = tmp_path / "a[1].bin", tmp_path / ".a[1].bin.0123abcd.tmp"
    left.write_bytes(b"of a killed call")
    with whole_file(path) as new:
        assert not left.exists()
        new.write_bytes(b"first")
        with whole_file(path) as other:
            other.write_bytes(b"second")
        assert new.read_bytes() == b"first", "not taken for one of a killed call"
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    with pytest.raises(ZeroDivisionError), whole_file(path) as new:
        new.write_bytes(b"half" * (1 // 0))
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_two_calls_may_sweep_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, left = tmp_path / "a.bin", tmp_path / ".a.bin.0123abcd.tmp"
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([left]))  # another call removed it since it was listed
    lock, locked = fcntl.flock, list[int]()

    def swept_once(descriptor: int, operation: int) -> None:
        """The other call removes the new file before this one has locked it."""
        if not locked:
            (new,) = (Path(f"/proc/self/fd/{descriptor}").resolve(),)
            new.unlink()
        locked.append(descriptor)
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", swept_once)
    with whole_file(path) as new:
        new.write_bytes(b"whole")
        with new.open("rb") as again, pytest.raises(BlockingIOError):
            lock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what is written is what is locked
    assert path.read_bytes() == b"whole"
    assert len(locked) == 2
