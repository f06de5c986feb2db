"""Where a folder or file is to be made: links are followed and kept, and what cannot be is said before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from retrieval.folders import whole_folder, writable_file, writable_folder
from tests.helpers.small_disk import small_disk


def write(out: Path, text: str) -> None:
    with whole_folder(out, replace=True) as new:
        (new / "a").write_text(text)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_kept_and_its_target_filled(tmp_path: Path, there: bool) -> None:
    real = tmp_path / "elsewhere" / "disk"
    if there:
        real.mkdir(parents=True)
    (tmp_path / "out").symlink_to(real)
    for text in ("old", "new"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink()
        assert (real / "a").read_text() == text
    assert [path.name for path in real.parent.iterdir()] == ["disk"]
    (tmp_path / "report").symlink_to(real / "report.json")
    assert writable_file(tmp_path / "report") == real / "report.json"


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "out") as mounted:
        with pytest.raises(UserError, match=r"as a mount point cannot; give a folder in it, such as .*out/new"):
            writable_folder(mounted)
        assert list(mounted.iterdir()) == []
        write(mounted / "new", "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o750)
    assert writable_folder(tmp_path / "empty") == tmp_path / "empty"
    assert writable_folder(tmp_path / "new") == tmp_path / "new"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        writable_file(tmp_path / "empty")
