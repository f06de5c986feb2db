"""A folder is whole or absent, whichever system call fails."""

import os
from pathlib import Path
from typing import Any

import pytest

from retrieval.files import whole_folder


def write(out: Path, text: str) -> None:
    with whole_folder(out) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


class FailAt:
    """Lets a real function run, but fails its n-th call (from 1)."""

    def __init__(self, function: Any, n: int) -> None:
        self.function, self.left = function, n

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(5, "Input/output error")
        return self.function(*arguments)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("call", "n"), [*(("fsync", n) for n in (1, 2, 3, 4)), ("rename", 1), ("rename", 2)])
def test_any_failing_call_leaves_the_old_or_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int, older: bool
) -> None:
    out = tmp_path / "out"
    if older:
        write(out, "old")
    owner: Any = os if call == "fsync" else Path
    failing = FailAt(getattr(owner, call), n)
    monkeypatch.setattr(owner, call, lambda *arguments: failing(*arguments))
    happens = not (call == "rename" and n == 2 and not older)  # without an older folder there is one rename
    try:
        write(out, "new")
        failed = False
    except OSError:
        failed = True
    assert failed == happens
    # the last fsync, of the parent folder, comes after the rename: then the new one is there, whole
    expected = "new" if not failed or (call, n) == ("fsync", 4) else "old" if older else None
    if expected is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert {path.name: path.read_text() for path in out.iterdir()} == {"a": expected, "b": expected}


def test_an_error_of_the_writer_leaves_the_older_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as new:  # noqa: PT012
        (new / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
