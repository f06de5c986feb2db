"""`mealrec recommend`: any id, users of a dataset, files of users, and what is wrong with each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from retrieval.recommender import Recommender
from tests.helpers.exported import IDS, export_model
from tests.helpers.paths import ROOT
from trainer.cli import main
from trainer.commands import recommend_many
from trainer.data.format.dataset import Dataset
from trainer.data.histories import HistoryFile

ODD = ["a b", "-7", "--x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recommend") / "model"
    export_model(out)
    return out


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of items whose ids hold a blank or begin with dashes."""
    out = tmp_path_factory.mktemp("odd") / "model"
    export_model(out, ids=[*ODD, *IDS[3:]])
    return out


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, list[object]]:
    assert main(["recommend", *map(str, words), "--json"]) == 0
    answer: dict[str, list[object]] = json.loads(capsys.readouterr().out)
    return answer


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["recommend", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_table_or_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("recommend", "--model", str(model), "--history", "v7 who v14", "--k", "3")
    assert main([*arguments]) == 0
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split() == ["rank", "id", "score", "title"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "who" in printed.err
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["unknown"] == ["who"]
    assert [r["rank"] for r in answer["recommendations"]] == [1, 2, 3]
    assert [r["item"] for r in answer["recommendations"]] == [line.split()[1] for line in lines]


def test_no_id_or_title_disturbs_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;x\x07\n   1  v7"
    export_model(tmp_path / "model", ids=[f"{each}{hostile}" for each in IDS], titles=[hostile] * len(IDS))
    items = ["--item", f"v7{hostile}", "--item", f"who{hostile}", "--keep-history"]
    assert main(["recommend", "--model", str(tmp_path / "model"), *items, "--k", "59"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["rank", *map(str, range(1, 60))]
    assert r"v7\x1b[2J\x1b]0;x\x07\n" in printed.out
    assert r"who\x1b[2J" in printed.err, "an unknown id"
    assert not {"\x1b", "\x07"} & {*printed.out, *printed.err}


def test_a_warning_says_that_less_is_left_than_was_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", str(model), "--history", "v7 v14", "--k", "58", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert (
        printed.err
        == "warning: 57 items, not 58: the catalogue has 59, and 2 that were watched or excluded are left out\n"
    )
    assert len(printed.out.splitlines()) == 58


def test_any_id_can_be_given(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_item = asked(capsys, "--model", odd, "--item", "a b", "--item", "-7", "--item=--x")
    assert by_item["unknown"] == []
    assert asked(capsys, "--model", odd, "--history", '["a b", " -7", "--x"]') == by_item
    assert asked(capsys, "--model", odd, "--history", "[-7]") == asked(capsys, "--model", odd, "--history", "-7")
    assert asked(capsys, "--model", odd, "--item", " -7 who ", "--item", "-7")["unknown"] == ["-7 who"]
    for text in ("a b", "a b -7"):
        said = refused(capsys, "--model", odd, "--history", text)
        assert f"--history '{text}' would be divided at its blanks" in said
    assert asked(capsys, "--model", odd, "--history", "-7 --x")["unknown"] == []
    assert "expected one argument" in refused(capsys, "--model", odd, "--item", "--k", "3")


def test_any_blank_in_an_id_makes_a_text_unclear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_model(tmp_path / "model", ids=["a\u00a0b", "a", "b", *IDS[3:]])
    assert "would be divided at its blanks" in refused(capsys, "--model", tmp_path / "model", "--history", "a\u00a0b")


@pytest.mark.parametrize("text", ['["a b"', "[a b]", "[1.5]", "[true]", '[["a b"]]'])
def test_a_list_that_is_not_json_is_refused(odd: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "begins like a list in JSON and is none" in refused(capsys, "--model", odd, "--history", text)


def test_a_user_of_a_dataset(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"-u{u},{IDS[(u + 2 * at) % 59]},{at}" for u in range(9) for at in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core-on", "none"]
    data = tmp_path / "data"
    assert main(["prepare", "table", "--file", str(tmp_path / "log.csv"), *columns, "--out", str(data)]) == 0
    mine = tmp_path / "mine"
    export_model(mine, provenance={"data": Dataset.open(data).manifest.fingerprint})
    capsys.readouterr()
    watched = [IDS[3], IDS[5], IDS[7], IDS[9]]
    ask = ["--model", mine, "--k", 60, "--json", "--user", "-u3", "--data", data]
    assert main(["recommend", *map(str, ask)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == asked(capsys, "--model", mine, "--k", 60, "--history", " ".join(watched))
    assert printed.err == "-u3 watched 4 items, the last one 'v70'\n"
    ask[1] = model
    assert main(["recommend", *map(str, ask)]) == 0
    assert "is not the dataset that" in capsys.readouterr().err
    assert "holds no user 'u3' (a user is '-u0')" in refused(capsys, "--model", mine, "--user", "u3", "--data", data)
    assert "--user needs --data: an export holds no users" in refused(capsys, "--model", mine, "--user", "-u3")
    assert "--data is only for --user" in refused(capsys, "--model", mine, "--item", "v7", "--data", data)


def histories(path: Path, lists: list[object], dtype: pl.DataType | None = None) -> Path:
    frame = pl.DataFrame({"user": range(10, 10 + len(lists)), "items": pl.Series(lists, dtype=dtype, strict=False)})
    frame.write_parquet(path)
    return path


def test_a_file_of_users(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users at a time; one bad history gets the popular items, and a note, and stops nobody."""
    monkeypatch.setattr(recommend_many, "_USERS", 2)
    monkeypatch.setattr("trainer.progress._QUIET_S", 0.0)
    lists = [["v7", " v14"], None, [], ["nope"], ["v7", None, "nope"], IDS, ["v21"]]
    file, out = histories(tmp_path / "[u].parquet", lists), tmp_path / "deep" / "out.parquet"
    assert main(["recommend", "--model", str(model), "--users", str(file), "--out", str(out), "--k", "3"]) == 0
    printed = capsys.readouterr()
    assert f"recommendations for 7 users written to {out}, ranked by exact on cpu" in printed.out
    assert "recommending: 2 of 7" in printed.err
    assert "warning: 5 of them have a note" in printed.err
    found = pl.read_parquet(out)
    assert found.schema == {
        "user": pl.Int64, "items": pl.List(pl.String), "scores": pl.List(pl.Float32), "ranks": pl.List(pl.Int32),
        "note": pl.String,
    }  # fmt: skip
    assert found["user"].to_list() == [*range(10, 17)]
    popular, none = ["v21", "v14", "v7"], "popular items, because the history holds no item that the model knows"
    alone = Recommender.load(model).recommend_all([["v7", "v14"], ["v7"], ["v21"]], 3)
    best = [[each.item for each in answer.recommendations] for answer in alone]
    assert found["items"].to_list() == [best[0], popular, popular, popular, best[1], [], best[2]]
    assert found["scores"].to_list()[1] == [None] * 3
    assert found["scores"].to_list()[0] == pytest.approx([each.score for each in alone[0].recommendations])
    assert found["ranks"].to_list() == [[1, 2, 3]] * 5 + [[], [1, 2, 3]]
    assert found["note"].to_list() == [
        None, none, none, f"ignored, because the model does not know them: 'nope'; {none}",
        "ignored, because the model does not know them: '', 'nope'",
        "0 items, not 3: the catalogue has 59, and 59 that were watched or excluded are left out", None,
    ]  # fmt: skip


def test_a_folder_of_parts_with_ids_that_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_model(tmp_path / "model", ids=[str(row) for row in range(1, 60)])
    (tmp_path / "users").mkdir()
    histories(tmp_path / "users/0.parquet", [[3, 4]])
    histories(tmp_path / "users/1.parquet", [[3.0, 4.0], [1.5]])
    files = ["--users", str(tmp_path / "users"), "--out", str(tmp_path / "out.parquet")]
    assert main(["recommend", "--model", str(tmp_path / "model"), *files]) == 0
    first, second, _ = pl.read_parquet(tmp_path / "out.parquet").rows()
    assert (first[1], first[4]) == (second[1], None)
    pl.DataFrame({"user": ["u"], "items": [["3"]]}).write_parquet(tmp_path / "users/1.parquet")
    capsys.readouterr()
    assert "differ in the type of 'user'" in refused(capsys, "--model", tmp_path / "model", *files)


def test_what_is_done_when_the_work_is_broken_off_is_not_done_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommend_many, "_USERS", 2)
    file, out = histories(tmp_path / "users.parquet", [[each] for each in IDS[:7]]), tmp_path / "out.parquet"
    ask = ["recommend", "--model", str(model), "--users", str(file), "--out", str(out), "--k", "3"]
    assert main(ask) == 0
    whole = out.read_bytes()
    out.write_bytes(b"older")
    answered = []

    def all_but_the_third(self: Recommender, lists: list[list[str]], *given: Any, **named: Any) -> Any:
        answered.append(lists)
        if len(answered) == 3:
            raise KeyboardInterrupt
        return answer(self, lists, *given, **named)

    answer = Recommender.rank_all
    monkeypatch.setattr(Recommender, "rank_all", all_but_the_third)
    assert main(ask) == 130
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.unfinished", file.name]
    capsys.readouterr()
    assert "unfinished work with another k; give the same command" in refused(capsys, *ask[1:-1], "4")
    assert main(ask) == 0
    assert "going on: 4 of 7 users are done" in capsys.readouterr().out
    assert [user for lists in answered[2:] for user in lists] == [[each] for each in [*IDS[4:6], *IDS[4:7]]]
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", file.name]


def test_rows_are_read_from_row_groups_of_any_size(tmp_path: Path, model: Path) -> None:
    lists = [[each] for each in IDS[:23]]
    frame = pl.DataFrame({"user": range(23), "items": lists})
    (tmp_path / "parts").mkdir()
    frame[:10].write_parquet(tmp_path / "parts/0.parquet", row_group_size=3)
    frame[10:].write_parquet(tmp_path / "parts/1.parquet", row_group_size=50)
    for size in (1, 4, 100):
        read = [unit.read() for unit in HistoryFile.open(tmp_path / "parts").units(size)]
        assert [user for users, _ in read for user in users.to_pylist()] == [*range(23)]
        assert [items for _, histories_ in read for items in histories_] == lists
    pl.DataFrame(schema=frame.schema).write_parquet(tmp_path / "none.parquet")
    files = ["--users", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "out.parquet")]
    assert main(["recommend", "--model", str(model), *files]) == 0
    assert pl.read_parquet(tmp_path / "out.parquet").shape == (0, 5)


@pytest.mark.ray
def test_ray_writes_the_same_file(tmp_path: Path, model: Path, ray_head: dict[str, str]) -> None:
    """On a cluster Ray is the default."""
    file = histories(tmp_path / "users.parquet", [["v7", "v14"], [], ["nope"], *([each] for each in IDS[:6])])
    ask = ["recommend", "--model", str(model), "--users", str(file), "--k", "3", "--out"]
    assert main([*ask, str(tmp_path / "inline.parquet"), "--launcher", "inline"]) == 0
    command = [sys.executable, "-m", "trainer.cli", *ask, str(tmp_path / "ray.parquet")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ray_head}, capture_output=True, text=True)
    assert (done.returncode, "Ray: 1 to load, 3 to encode" in done.stderr) == (0, True), done.stderr
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "inline.parquet").read_bytes()
    assert len([*tmp_path.iterdir()]) == 3


def test_a_file_that_holds_no_histories_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, out = histories(tmp_path / "good.parquet", [["v7"]]), tmp_path / "bad.parquet", tmp_path / "out.parquet"
    ask = ["--model", model, "--out", out, "--users"]
    for frame, said in (
        (pl.DataFrame({"user": [1], "item": [["v7"]]}), "has no column 'items'; did you mean 'item'?"),
        (pl.DataFrame({"user": [1], "items": ["v7 v14"]}), "'items' is large_string; a list of item ids per row"),
        (pl.DataFrame({"user": [1], "items": [[["v7"]]]}), "a list of item ids per row is expected"),
    ):
        frame.write_parquet(bad)
        assert said in refused(capsys, *ask, bad)
    bad.write_bytes(good.read_bytes()[:-9])
    assert "bad.parquet cannot be read as Parquet" in refused(capsys, *ask, bad)
    (tmp_path / "users.csv").write_text("user,items\n1,v7\n")
    assert "users.csv is not a Parquet file; write user and items" in refused(capsys, *ask, tmp_path / "users.csv")
    assert "is the file of --users" in refused(capsys, "--model", model, "--users", good, "--out", good)
    assert "--users needs --out" in refused(capsys, "--model", model, "--users", good)
    assert "--out is only for --users" in refused(capsys, "--model", model, "--item", "v7", "--out", out)
    assert "not allowed with argument" in refused(capsys, *ask, good, "--item", "v7")
    assert "--json prints one answer" in refused(capsys, *ask, good, "--json")
    assert "ask for at least 1" in refused(capsys, *ask, good, "--k", "0")
    assert not out.exists()
