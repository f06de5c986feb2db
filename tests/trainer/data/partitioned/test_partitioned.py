"""`prepare table` in partitions and under Ray: the bytes, and the messages, of one process."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.errors import UserError
from trainer.commands import prepare as command
from trainer.data.format.dataset import Dataset
from trainer.data.selection import sample_users

COLUMNS = ("--user", "who", "--item", "what", "--time", "when")


def prepare(log: object, out: Path, *more: object) -> Dataset:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = ["table", "--file", log, *COLUMNS, *more, "--out", out]
    args = parser.parse_args([str(argument) for argument in arguments])
    args.command_line = "mealrec prepare"
    assert command.run(args) == 0
    return Dataset.open(out)


def assert_same(one: Path, other: Path) -> None:
    """All files are equal, byte for byte, but for when and how the dataset was made."""
    names = [sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) for root in (one, other)]
    assert names[0] == names[1]
    manifests = [json.loads((root / "manifest.json").read_text()) for root in (one, other)]
    for manifest in manifests:
        del manifest["provenance"]["time"]
    assert list(manifests[0]["dropped"]) == list(manifests[1]["dropped"])
    assert manifests[0] == manifests[1]
    for name in names[0]:
        if name != "manifest.json" and (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def rows(count: int, seed: int = 0) -> pl.DataFrame:
    """Users and items by a power law, few distinct times, rows that are there twice, and a title for some rows."""
    rng = np.random.default_rng(seed)
    user = rng.zipf(1.4, count) % 150
    item = rng.zipf(1.3, count) % 60
    frame = pl.DataFrame({"who": user, "what": item, "when": rng.integers(0, 40, count)})
    titles = pl.Series([f"title {i} {n % 3}" if n % 4 else None for n, i in enumerate(item.tolist())])
    titled = frame.with_columns(name=titles.cast(pl.String))
    return pl.concat([titled, titled[: count // 10].with_columns(name=pl.lit("again"))])


def write_parts(folder: Path, frame: pl.DataFrame, kind: str = "parquet", parts: int = 3) -> Path:
    folder.mkdir()
    size = -(-len(frame) // parts)
    for number in range(parts):
        part = frame[number * size : (number + 1) * size]
        path = folder / f"part-{number}.{kind}"
        if kind == "parquet":
            part.write_parquet(path)
        else:
            part.write_csv(path)
    return folder


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        ("--k-core", 5, "--title", "name"),
        ("--core-on", "none"),
        ("--core-on", "items", "--k-core", 3, "--sample-users", 60, "--seed", 3),
    ],
)
def test_partitions_make_the_same_dataset(tmp_path: Path, partitions: int, options: tuple[object, ...]) -> None:
    log = write_parts(tmp_path / "log", rows(3000))
    whole = prepare(log, tmp_path / "whole", *options)
    assert whole.manifest.users > 10
    prepare(log, tmp_path / "parted", *options, "--partitions", partitions)
    assert_same(tmp_path / "whole", tmp_path / "parted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "parted", "whole"]


@pytest.mark.parametrize(
    "when",
    [
        [
            f"2026-01-{day:02} 10:00:0{n}.{n:03}0000" for n in range(4) for day in range(1, 11)
        ],  # nanoseconds in some part
        [f"2026-01-{day:02}T10:00:00+0{n}:00" for n in range(4) for day in range(1, 11)],
        [f"{n % 10}.{n // 10}" for n in range(40)],
        [f"{n // 3}.0" for n in range(40)],
    ],
)
def test_times_and_ids_as_text(tmp_path: Path, when: list[str]) -> None:
    frame = pl.DataFrame(
        {"who": [f"{n % 5}.0" for n in range(40)], "what": [f" {n % 7}.00" for n in range(40)], "when": when}
    )
    log = write_parts(tmp_path / "log", frame, "csv")
    prepare(log, tmp_path / "whole", "--core-on", "none")
    assert "0" in prepare(log, tmp_path / "parted", "--core-on", "none", "--partitions", 3).user_ids()
    assert_same(tmp_path / "whole", tmp_path / "parted")


def test_an_id_in_one_part_decides_for_all(tmp_path: Path) -> None:
    """3.0 is the number 3 only where every id ends so."""
    frame = pl.DataFrame({"who": ["1.0"] * 9, "what": [f"{n}.0" for n in range(8)] + ["x"], "when": range(9)})
    log = write_parts(tmp_path / "log", frame, "csv")
    prepare(log, tmp_path / "whole", "--core-on", "none")
    parted = prepare(log, tmp_path / "parted", "--core-on", "none", "--partitions", 2)
    assert parted.item_ids()[0] == "0.0"
    assert parted.user_ids() == ["1"]
    assert_same(tmp_path / "whole", tmp_path / "parted")


def test_parts_of_other_number_types_and_without_rows(tmp_path: Path) -> None:
    log = write_parts(tmp_path / "log", rows(300).drop("name"))
    rows(300, seed=1).drop("name").with_columns(pl.col("what").cast(pl.Float64)).write_parquet(log / "part-4.parquet")
    rows(0).drop("name").write_parquet(log / "part-5.parquet")
    prepare(log, tmp_path / "whole", "--core-on", "none")
    prepare(log, tmp_path / "parted", "--core-on", "none", "--partitions", 3)
    assert_same(tmp_path / "whole", tmp_path / "parted")


def test_titles_beside_the_log(tmp_path: Path) -> None:
    log = write_parts(tmp_path / "log", rows(500).drop("name"))
    (tmp_path / "titles.csv").write_text("item,title\n1,One\n2,Two\n999,Nobody's\n")
    options = ("--core-on", "none", "--titles", tmp_path / "titles.csv")
    prepare(log, tmp_path / "whole", *options)
    assert "One" in prepare(log, tmp_path / "parted", *options, "--partitions", 2).item_titles()
    assert_same(tmp_path / "whole", tmp_path / "parted")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({(2, "who"): ""}, r"part-2\.csv, line 4: user is missing"),
        # one process looks at all users before any item
        ({(0, "what"): "", (2, "who"): ""}, r"part-2\.csv, line 4: user is missing"),
        ({(0, "when"): "noon", (1, "what"): ""}, r"part-1\.csv, line 4: item is missing"),
        ({(1, "when"): "noon", (2, "when"): "never"}, r"part-1\.csv, line 4: time 'noon' is not a time"),
    ],
)
def test_mistakes_are_told_as_by_one_process(tmp_path: Path, cells: dict[tuple[int, str], str], message: str) -> None:
    log = write_parts(tmp_path / "log", rows(60).drop("name"), "csv")
    for (part, column), value in cells.items():
        path = log / f"part-{part}.csv"
        frame = pl.read_csv(path, infer_schema=False)
        frame[2, column] = value
        frame.write_csv(path)
    told = []
    for more in ((), ("--partitions", 2)):
        with pytest.raises(UserError, match=message) as raised:
            prepare(log, tmp_path / "out", *more)
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--k-core", 1000), "no interaction is left of"),
        (("--sample-users", 100_000), "--sample-users 100000: the source has"),
        (("--partitions", 0), "--partitions 0"),
    ],
)
def test_mistakes_in_options(tmp_path: Path, more: tuple[object, ...], message: str) -> None:
    log = write_parts(tmp_path / "log", rows(200).drop("name"))
    more = more if "--partitions" in more else (*more, "--partitions", 2)
    with pytest.raises(UserError, match=message) as raised:
        prepare(log, tmp_path / "out", *more)
    if more[0] != "--partitions":
        with pytest.raises(UserError) as whole:
            prepare(log, tmp_path / "out", *more[:2])
        assert str(raised.value) == str(whole.value)


def test_a_core_that_drops_half_warns_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_parts(tmp_path / "log", rows(600).drop("name"))
    told = []
    for name, more in (("whole", ()), ("parted", ("--partitions", 3))):
        prepare(log, tmp_path / name, "--k-core", 9, *more)
        told.append(capsys.readouterr().err)
    assert "keeps only" in told[0]
    assert told[0] == told[1]


def test_one_time_for_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_parts(tmp_path / "log", rows(100).drop("name").with_columns(when=pl.lit(5)))
    prepare(log, tmp_path / "out", "--core-on", "none", "--partitions", 2)
    assert "all rows have the same time (5)" in capsys.readouterr().err


def test_a_sample_of_codes_is_a_sample_of_rows() -> None:
    codes = np.array([2, 0, 1, 3])
    assert np.array_equal(sample_users(codes, 4, 2, 7), sample_users(np.arange(4), 4, 2, 7)[codes])


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_ray_makes_the_same_dataset_and_tells_the_same(tmp_path: Path) -> None:
    log = write_parts(tmp_path / "log", rows(2000))
    options = ("--k-core", 3, "--title", "name")
    prepare(log, tmp_path / "whole", *options)
    prepare(log, tmp_path / "parted", *options, "--launcher", "ray", "--partitions", 5)
    assert_same(tmp_path / "whole", tmp_path / "parted")
    with pytest.raises(UserError) as whole:
        prepare(log, tmp_path / "out", "--k-core", 3, "--title", "nane")
    with pytest.raises(Exception, match="did you mean") as raised:
        prepare(log, tmp_path / "out", "--k-core", 3, "--title", "nane", "--launcher", "ray")
    assert getattr(raised.value, "message", "") == str(whole.value)
