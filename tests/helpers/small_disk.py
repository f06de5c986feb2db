"""A disk of a few megabytes, for tests of what happens when it is full or cannot be replaced."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.cli import main


@contextmanager
def small_disk(folder: Path, mib: int = 4) -> Iterator[Path]:
    """A disk of `mib` MiB, mounted at `folder` as long as this lasts; the test is skipped where mounting is not
    allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk ({error})")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # -l: SQLite of this process keeps files open


def fill(disk: Path, leave: int) -> Path:
    """Fill `disk` but for about `leave` bytes; returns the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            stream.truncate(max(0, stream.tell() - leave))
    return filler


def assert_refused(capsys: pytest.CaptureFixture[str], disk: Path, *command: str) -> None:
    """The command fails with one message about the disk, and leaves it as it was."""
    before = sorted(disk.rglob("*"))
    capsys.readouterr()
    assert main([*command]) == 2
    err = capsys.readouterr().err
    assert "is full: more" in err
    assert "MB are free; make room or choose another place" in err
    assert sorted(disk.rglob("*")) == before
