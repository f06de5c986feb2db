"""Delimited text: quotes, blank and long records, byte order marks, an index column, and the line of what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from models.errors import UserError
from trainer.data.sources.items import read_items
from trainer.data.sources.microlens import read_microlens
from trainer.data.sources.recbole import read_recbole
from trainer.data.sources.shortvideo import read_shortvideo
from trainer.data.sources.table import read_table

HEAD = "user_id,pid,exposed_time,title\n"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    """`log[1].csv` is not the pattern that matches log1.csv, in any reader of files."""
    logs = {"log[1]": "abc", "log1": "xyz"}
    for stem, items in logs.items():
        frame = pl.DataFrame({"user": ["u"] * 3, "item": list(items), "time": [1, 2, 3]})
        frame.write_csv(tmp_path / f"{stem}.csv")
        frame.write_csv(tmp_path / f"{stem}-q.csv", quote_style="always")
        frame.write_parquet(tmp_path / f"{stem}.parquet")
        (tmp_path / f"{stem}.folder").mkdir()
        frame.write_parquet(tmp_path / f"{stem}.folder" / "part.parquet")
        put(tmp_path, f"{stem}.txt", "\n".join(items))
    for name in ("log[1].csv", "log[1]-q.csv", "log[1].parquet", "log[1].folder"):
        assert read_table(tmp_path / name, "user", "item", "time").frame["item"].to_list() == ["a", "b", "c"], name
    for name in ("log[1].txt", "log[1].parquet"):
        assert read_items(tmp_path / name)["item"].to_list() == ["a", "b", "c"], name


@pytest.mark.parametrize("inner", ['6" ruler', 'a "word" in it', '13" and 15"', "no quote"])
def test_a_quote_within_a_cell_is_text(tmp_path: Path, inner: str) -> None:
    log = read_shortvideo(put(tmp_path, "i.csv", f'{HEAD}u,a,1,"x, ""y"""\nu,b,2,{inner}\nu,c,3,z\n'))
    assert log.titles == {"a": 'x, "y"', "b": inner, "c": "z"}


def test_cells_in_quotes_go_over_lines_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    text = HEAD + 'u,a,1,"two\r\nlines"\n\nu,b,2,"one\n\n""more"""\n'
    assert read_shortvideo(put(tmp_path, "i.csv", text)).titles == {"a": "two\nlines", "b": 'one\n\n"more"'}
    with pytest.raises(UserError, match=r"i\.csv, line 8: time 'oops'"):
        read_shortvideo(put(tmp_path, "i.csv", text + "u,c,oops,x\n"))
    with pytest.raises(UserError, match=r"i\.csv, line 8 has 5 columns instead of 4"):
        read_shortvideo(put(tmp_path, "i.csv", text + "u,c,3,x,y\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('u,b,2,"Hello" world', r"line 3: text after the closing quote of '\"Hello\" world'"),
        ('u,b,2,"unterminated', "line 3: a double quote begins a cell and none ends it"),
        ('u,b,2,"from here\nu,b,3,"to there"', "line 3: text after the closing quote"),
    ],
)
def test_quotes_that_do_not_match_are_named_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"i\.csv, {message}"):
        read_shortvideo(put(tmp_path, "i.csv", f"{HEAD}u,a,1,plain\n{line}\nu,c,4,end\n"))


def test_quoted_cells_of_tsv_and_of_one_column(tmp_path: Path) -> None:
    tsv = '"user"\t"item"\t"time"\n"u"\t"a ""b"""\t1\n"u"\t"c\td"\t2\n'
    assert read_table(put(tmp_path, "r.tsv", tsv), "user", "item", "time").frame["item"].to_list() == ['a "b"', "c\td"]
    assert read_items(put(tmp_path, "r.txt", '"7"\n8\n"9, 10"\n'))["item"].to_list() == ["7", "8", "9, 10"]
    assert read_items(put(tmp_path, "r.csv", '"item"\n"7"\n'))["item"].to_list() == ["7"]


def test_an_index_column_without_a_name_is_ignored(tmp_path: Path) -> None:
    log = read_table(put(tmp_path, "i.csv", ",user,item,time\n0,u,a,1\n1,u,b,2\n"), "user", "item", "time")
    assert log.frame.rows() == [("u", "a", 1), ("u", "b", 2)]
    with pytest.raises(UserError, match=r"no column 'when'.* It has: user, item, time$"):
        read_table(tmp_path / "i.csv", "user", "item", "when")


def test_semicolons_separate_cells_where_the_header_says_so(tmp_path: Path) -> None:
    """As Excel writes CSV where a comma is in numbers; a comma is text then."""
    table = put(tmp_path, "e.csv", 'user;"item";time;title\nu;a;1;one, two\nu;b;2;"three; four"\n')
    log = read_table(table, "user", "item", "time", "title")
    assert log.frame.rows() == [("u", "a", 1), ("u", "b", 2)]
    assert log.titles == {"a": "one, two", "b": "three; four"}
    titles = put(tmp_path, "t.csv", "item;title\na;one, two\n")
    assert read_items(titles).rows() == [("a", "one, two", None)]
    assert read_items(put(tmp_path, "i.txt", "a;b\nc\n"))["item"].to_list() == ["a;b", "c"]
    with pytest.raises(UserError, match="line 1 has no column 'user'"):
        read_table(put(tmp_path, "n.csv", "who;what\n1;2\n"), "user", "item", "time")


def test_a_byte_order_mark_belongs_to_no_cell(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert read_microlens(put(tmp_path, "p.tsv", mark + b"u\ta b\n")).frame["user"].unique().to_list() == ["u"]
    assert read_items(put(tmp_path, "i.txt", mark + b"a\nb\n"))["item"].to_list() == ["a", "b"]
    assert read_items(put(tmp_path, "q.txt", mark + b'"a"\n"b\nc"\n'))["item"].to_list() == ["a", "b\nc"]
    assert read_items(put(tmp_path, "t.csv", mark + b'"a 1","x"\nb,y"z\n'))["title"].to_list() == ["x", 'y"z']


def test_lists_of_recbole_are_refused_with_the_reason(tmp_path: Path) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
    with pytest.raises(UserError, match=r"item_id_list:token_seq holds a list.*give the \.inter file"):
        read_recbole(put(tmp_path, "b.train.inter", header + "u\ta b\tc\t3\n"))


def test_what_is_written_with_quotes_is_read_back(tmp_path: Path) -> None:
    """1,000 tables of awkward cells, written by polars: each is read as it was, but for blanks around its cells."""
    draw = random.Random(0)
    for number in range(1000):
        cells = [["".join(draw.choices('ab",\n é', k=draw.randrange(5))) for _ in range(4)] for _ in range(2)]
        frame = pl.DataFrame({"item": [f"i{n}" for n in range(4)], "title": cells[0], "video": cells[1]})
        frame.write_csv(tmp_path / "t.csv")
        read = read_items(tmp_path / "t.csv")
        for name in ("title", "video"):
            assert read[name].to_list() == [cell.strip() or None for cell in frame[name]], number
