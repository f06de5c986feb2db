"""Sources: every supported format gives the same log; a malformed table gives a clear UserError, or is counted."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import UserError
from trainer.data.sources.base import Log
from trainer.data.sources.microlens import read_microlens
from trainer.data.sources.recbole import read_recbole
from trainer.data.sources.shortvideo import read_shortvideo
from trainer.data.sources.table import read_table


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(log: Log) -> list[tuple[str, str, int]]:
    return log.frame.select("user", "item", "time").rows()


def table(path: Path) -> Log:
    return read_table(path, "user", "item", "time")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_microlens_tsv(tmp_path: Path, newline: str) -> None:
    log = read_microlens(put(tmp_path, "p.tsv", newline.join(["7\t30 10  20", "", "8\t10 ", "7\t5"])))
    assert [(u, i) for u, i, _ in rows(log)] == [("7", "30"), ("7", "10"), ("7", "20"), ("8", "10"), ("7", "5")]
    times = [t for *_, t in rows(log)]
    assert times == sorted(set(times))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [True, False])
def test_microlens_csv_and_titles(tmp_path: Path, newline: str, header: bool) -> None:
    pairs = put(tmp_path, "p.csv", newline.join(["user,item,timestamp", "1,a,30", "1,b,10", "1,a,30", ""]))
    titles = ['a,"one, ""two"""', "b,plain title", "a,again", "c,"]
    log = read_microlens(pairs, put(tmp_path, "t.csv", newline.join((["item,title"] if header else []) + titles)))
    assert sorted(rows(log)) == [("1", "a", 30), ("1", "b", 10)]
    assert log.dropped == {"duplicate rows": 1}
    assert log.titles == {"a": 'one, "two"', "b": "plain title"}
    assert [file.name for file in log.files] == ["p.csv", "t.csv"]


def test_shortvideo_keeps_behaviours_as_bits(tmp_path: Path) -> None:
    text = (
        "user_id,pid,exposed_time,hate,cvm_like,comment,title\n"
        '1,a,5,0,1,False,"x, y"\n1,b,6,True,TRUE,0.0,\n1,a,5,0,0,1,other\n2,b,7,,0,0,z\n'
    )
    log = read_shortvideo(put(tmp_path, "i.csv", text))
    assert log.behaviour_names == ("cvm_like", "comment", "hate")
    bits = {(u, i): b for u, i, _, b in log.frame.select("user", "item", "time", "behaviours").rows()}
    assert bits == {("1", "a"): 0b011, ("1", "b"): 0b101, ("2", "b"): 0}  # duplicates are joined
    assert log.dropped == {"duplicate rows": 1}
    assert log.titles == {"a": "x, y", "b": "z"}


def test_shortvideo_bad_behaviour(tmp_path: Path) -> None:
    path = put(tmp_path, "i.csv", "user_id,pid,exposed_time,hate\n1,a,5,0\n1,b,6,maybe\n")
    with pytest.raises(UserError, match=r"i\.csv, line 3: hate 'maybe' is neither true nor false"):
        read_shortvideo(path)


def test_recbole(tmp_path: Path) -> None:
    text = 'rating:float\ttimestamp:float\titem_id:token\tuser_id:token\n5\t978300760.0\ta"b\t1\n3\t9e8\tc\t1\n'
    assert rows(read_recbole(put(tmp_path, "x.inter", text))) == [("1", "c", 900000000), ("1", 'a"b', 978300760)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem_id:token\ttime", "line 1: column 'time' is not name:type"),
        ("user_id:token\titem:token\ttimestamp:float", "no column 'item_id'; did you mean 'item'"),
    ],
)
def test_recbole_header(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recbole(put(tmp_path, "x.inter", header + "\n1\t2\t3\n"))


def test_table_formats_agree(tmp_path: Path) -> None:
    frame = pl.DataFrame({"time": [3, 1, 2], "item": ["x", "y", "x"], "user": [1, 1, 2]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    expected = [("1", "y", 1), ("2", "x", 2), ("1", "x", 3)]
    for name in ("a.parquet", "a.csv", "a.tsv"):
        assert rows(table(tmp_path / name)) == expected
    put(tmp_path, "bom.csv", b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    assert rows(table(tmp_path / "bom.csv")) == expected


@pytest.mark.parametrize("dtype", [pl.Datetime("ns"), pl.Datetime("ms"), pl.Datetime("us", "UTC")])
def test_parquet_datetimes(tmp_path: Path, dtype: pl.DataType) -> None:
    times = [datetime(2024, 1, 1, 0, 0, 5, 900_000), datetime(2024, 1, 1, 0, 0, 5, 100_000)]
    frame = pl.DataFrame({"user": ["u", "u"], "item": ["late", "early"], "time": times})
    frame.with_columns(pl.col("time").cast(dtype)).write_parquet(tmp_path / "a.parquet")
    assert rows(table(tmp_path / "a.parquet")) == [("u", "early", 1704067205), ("u", "late", 1704067205)]


def test_fractions_of_a_second_order_rows(tmp_path: Path) -> None:
    log = table(put(tmp_path, "a.csv", "user,item,time\nu,late,5.9\nu,early,5.1\nu,first,-1\n"))
    assert rows(log) == [("u", "first", -1), ("u", "early", 5), ("u", "late", 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n1,2,3\n", "line 1 is empty"),
        (b"user,item,time\n", "no rows after its header"),
        (b"user,item,time\n\n\r\n", "no rows after its header"),
        (b"user,item,when\n1,2,3\n", "no column 'time'"),
        (b"user,itme,time\n1,2,3\n", "no column 'item'; did you mean 'itme'"),
        (b"user,item,time,time\n1,2,3,4\n", "column names"),
        (b"user,item,time,\n1,2,3,4\n", "column names"),
        (b"user,item,time\n1,2,3\n1,\xff,3\n", "line 3 is not UTF-8"),
        ("user,item,time\n1,ß,3\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"user,item,time\n1,2,3\xe2\x82", "line 2 ends in the middle of a character"),
        (b"user,item,time\n1,2,3\n1,2,x\n", "line 3: time 'x' is not a time"),
        (b"user,item,time\n1,2,3\n\n1,2,nan\n", "line 4: time 'nan' is not a time|line 4: time"),
        (b"user,item,time\n1,2,inf\n", "line 2: time"),
        (b"user,item,time\n1,2,99999999999999999999\n", "line 2: time"),
        (b"user,item,time\n1,2,\n", "line 2: time is not a time|line 2: time"),
        (b"user,item,time\n1,2,01.02.2024\n", "line 2: time"),
        (b"user,item,time\n1,2\n", "line 2: time"),
        (b"user,item,time\n1,,3\n", "line 2: item is missing"),
        (b"user,item,time\n , 2,3\n", "line 2: user is missing"),
        (b"user,item,time\n1,2,3\n1,a,b,3\n", "line 3 has 4 columns instead of 3"),
        (b'user,item,time\n1,"2,3\n', "a.csv"),
    ],
)
def test_malformed_csv(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"a\.csv.*") as caught:
        table(put(tmp_path, "a.csv", content))
    assert any(part in str(caught.value) for part in message.split("|")), caught.value


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["1"], "item": ["2"]}, r"a\.parquet has no column 'time'"),
        ({"user": ["1"], "item": ["2"], "time": [float("nan")]}, "row 1: time"),
        ({"user": ["1"], "item": ["2"], "time": [None]}, "time"),
        ({"user": ["1"], "item": ["2"], "time": [True]}, "the time column is Boolean"),
        ({"user": ["1"], "item": [None], "time": [1]}, "item is missing"),
        ({"user": [[1]], "item": ["2"], "time": [1]}, "column 'user' is List"),
        ({"user": ["1"], "item": ["2"], "time": [datetime(2024, 1, 1)]}, None),
        ({"user": [], "item": [], "time": []}, "no rows"),
    ],
)
def test_parquet_columns(tmp_path: Path, columns: dict[str, list[object]], message: str | None) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    if message is None:
        assert len(table(tmp_path / "a.parquet").frame) == 1
        return
    with pytest.raises(UserError, match=message) as told:
        table(tmp_path / "a.parquet")
    assert "a.parquet" in str(told.value)


def test_parquet_time_without_values_of_a_datetime(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["1", "1"], "item": ["2", "3"], "time": [datetime(2024, 1, 1), None]})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 2: time is missing"):
        table(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user,item,time\n1,2,3\n"])
def test_not_parquet(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.parquet"):
        table(put(tmp_path, "a.parquet", content))


@pytest.mark.parametrize(("content", "message"), [(b"1\t\n", "items is missing"), (b"1\ta\n2\tb\tc\n", "line 2 has 3")])
def test_malformed_tsv(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"p\.tsv.*{message}"):
        read_microlens(put(tmp_path, "p.tsv", content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(UserError, match="cannot"):
            table(path)


cells = st.one_of(
    st.sampled_from(
        ["", " ", "1", "2", "a", "-1", "1.5", "nan", "inf", "1e400", "9" * 30, '"', '""', '"a,b"', "\t", "é"]
    ),
    st.text(max_size=6),
)
lines = st.lists(st.lists(cells, min_size=0, max_size=5).map(",".join), max_size=6)
headers = st.sampled_from(
    ["user,item,time", "user,item,time,x", "time,user,item", "user,item", "user;item;time", "", '"']
)
newlines = st.sampled_from(["\n", "\r\n", "\r"])


tables = given(headers, lines, newlines, st.binary(max_size=3), st.integers(0, 200))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@tables
def test_generated_tables_are_read_or_refused(header: str, body: list[str], newline: str, junk: bytes, at: int) -> None:
    assert_read_or_refused(header, body, newline, junk, at)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@tables
def test_ten_thousand_generated_tables_are_read_or_refused(
    header: str, body: list[str], newline: str, junk: bytes, at: int
) -> None:
    assert_read_or_refused(header, body, newline, junk, at)


def assert_read_or_refused(header: str, body: list[str], newline: str, junk: bytes, at: int) -> None:
    """Every table is either read as a well-formed log, or refused with a UserError that names the file."""
    data = newline.join([header, *body]).encode("utf-8", "surrogatepass")
    at, refusals = min(at, len(data)), []
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), "made.csv", data[:at] + junk + data[at:])
        for read in (table, read_microlens, read_shortvideo, read_recbole):
            try:
                log = read(path)
            except UserError as error:
                refusals.append(str(error))
                continue
            assert log.frame.schema["time"] == pl.Int64
            assert log.frame.null_count().sum_horizontal().item() == 0
    assert all("made.csv" in message for message in refusals)
