"""`prepare table`: titles of the log and beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from trainer.data.sources.table import read_table, with_titles

LOG = "user,vid,time,name\nu,7,1,Cat\nu,8,2,\nu,9,3,Dog\n"


def test_titles_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    assert read_table(tmp_path / "a.csv", "user", "vid", "time", "name").titles == {"7": "Cat", "9": "Dog"}
    with pytest.raises(UserError, match="no column 'nane'; did you mean 'name'"):
        read_table(tmp_path / "a.csv", "user", "vid", "time", "nane")


@pytest.mark.parametrize("header", ["item,title\n", "vid,title\n", ""])
def test_titles_of_a_table_beside_it(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    (tmp_path / "t.csv").write_text(f'{header}8.0,"One, two"\n8.0,again\n10.0,Other\n')
    log = with_titles(read_table(tmp_path / "a.csv", "user", "vid", "time"), tmp_path / "t.csv", "vid")
    assert log.titles == {"8": "One, two", "10": "Other"}
    assert [path.name for path in log.files] == ["a.csv", "t.csv"]


@pytest.mark.parametrize(
    ("titles", "message"), [("item\n7\n", "has no titles"), ("item,title\nx,Cat\n", "like 'x', in the log like '7'")]
)
def test_titles_that_do_not_fit(tmp_path: Path, titles: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    (tmp_path / "t.csv").write_text(titles)
    with pytest.raises(UserError, match=rf"t\.csv has no title.*{message}|{message}"):
        with_titles(read_table(tmp_path / "a.csv", "user", "vid", "time"), tmp_path / "t.csv", "vid")
