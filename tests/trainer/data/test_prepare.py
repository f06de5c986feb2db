"""`mealrec prepare`: selection, content and the command, against brute force, and on MicroLens if it is there."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from retrieval.folders import sole_maker
from tests.helpers.tiny_runs import fork_server
from trainer.cli import main
from trainer.commands import prepare as command
from trainer.data.format.dataset import Dataset
from trainer.data.format.manifest import CoreOn, Manifest
from trainer.data.kept import PrepareOptions
from trainer.data.prepare import prepare
from trainer.data.provided import feature_content
from trainer.data.selection import codes, k_core, sample_users
from trainer.data.sources.base import Log

ALL = PrepareOptions(core_on="none")


def make_log(histories: dict[str, str], titles: dict[str, str] | None = None) -> Log:
    """A log of space-separated items per user, interleaved, newest first in the source."""
    rows = [(user, item, at) for user, items in histories.items() for at, item in enumerate(items.split())]
    frame = pl.DataFrame(rows[::-1], schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row")
    return Log(frame, (), titles or {})


def histories(dataset: Dataset) -> dict[str, str]:
    names = ["PAD", *dataset.item_ids()]
    bounds = dataset.offsets.tolist()
    return {
        user: " ".join(names[i] for i in dataset.items[bounds[u] : bounds[u + 1]])
        for u, user in enumerate(dataset.user_ids())
    }


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.command_line = "mealrec prepare"  # as `trainer.cli` sets it
    return command.run(args)


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


@given(pairs, st.integers(1, 4), st.sampled_from(["both", "users", "items", "none"]))
def test_k_core_is_the_fixed_point_of_dropping_one_at_a_time(rows: list[tuple[int, int]], k: int, on: CoreOn) -> None:
    user_min, item_min = (max(3, k) if on in ("both", "users") else 3), (k if on in ("both", "items") else 0)
    left = dict(enumerate(rows))
    while True:
        users, items = ([pair[side] for pair in left.values()] for side in (0, 1))
        bad = [r for r, (u, i) in left.items() if users.count(u) < user_min or items.count(i) < item_min]
        if not bad:
            break
        del left[bad[-1]]
    got = k_core(np.array([u for u, _ in rows]), np.array([i for _, i in rows]), k, on)
    assert np.flatnonzero(got).tolist() == list(left)


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 10), st.integers(0, 5))
def test_sample_keeps_whole_users(users: list[int], sample: int, seed: int) -> None:
    rows = np.array([*users, *range(10)])
    keep = sample_users(rows, 10, sample, seed)
    assert len(set(rows[keep])) == sample
    assert set(rows[keep]).isdisjoint(rows[~keep])
    assert np.array_equal(keep, sample_users(rows, 10, sample, seed))


def test_order_is_by_time_and_short_users_are_counted(tmp_path: Path) -> None:
    log = make_log({"u": "c a b a", "short": "a b", "v": "b c d"})
    manifest = prepare(log, tmp_path / "out", ALL, "made by a test")
    dataset = Dataset.open(tmp_path / "out")
    assert histories(dataset) == {"u": "c a b a", "v": "b c d"}
    assert manifest.dropped["users with fewer than 3 interactions"] == 1
    assert manifest.dropped["interactions of users with fewer than 3"] == 2
    assert manifest.provenance.command == "made by a test"
    assert (manifest.core.k, manifest.core.on) == (0, "none")
    assert np.load(tmp_path / "out/sequences/times.npy").tolist() == [
        at for user in dataset.user_ids() for at in range(4 if user == "u" else 3)
    ]


def test_equal_times_keep_the_order_of_the_source(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user": ["u"] * 40, "item": [f"{i}" for i in range(40)], "time": [i // 20 for i in range(40)]}
    )
    prepare(Log(frame, ()), tmp_path / "out", ALL, "")
    assert histories(Dataset.open(tmp_path / "out")) == {"u": " ".join(map(str, range(40)))}


def test_behaviours_stay_with_their_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"] * 3, "item": ["a", "b", "c"], "time": [3, 1, 2], "behaviours": [1, 2, 4]})
    log = Log(frame.with_columns(pl.col("behaviours").cast(pl.UInt8)), (), behaviour_names=("like", "hate", "share"))
    manifest = prepare(log, tmp_path / "out", ALL, "")
    assert manifest.behaviours == ("like", "hate", "share")
    assert np.load(tmp_path / "out/sequences/behaviours.npy").tolist() == [2, 4, 1]


def test_nothing_left_says_what_was_dropped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no interaction is left of 3: .*3 interactions outside the 4-core"):
        prepare(make_log({"u": "a b c"}), tmp_path / "out", PrepareOptions(), "")
    assert not (tmp_path / "out").exists()


def test_k_core_holds_in_the_sample(tmp_path: Path) -> None:
    log = make_log({f"u{u}": "a b c d" if u % 2 else f"a b c x{u}" for u in range(20)})
    manifest = prepare(log, tmp_path / "out", PrepareOptions(k_core=3, sample_users=9, seed=1), "")
    assert manifest.dropped["users not in the sample"] == 11
    assert manifest.dropped["interactions of users not in the sample"] == 44
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.manifest.users == 9  # every one of them still has a, b and c
    assert np.bincount(dataset.items)[1:].min() >= 3


def test_sample_larger_than_the_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sample-users 3: the source has 1 users"):
        prepare(make_log({"u": "a b c"}), tmp_path / "out", PrepareOptions(sample_users=3), "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_core": 0}, "--k-core 0"),
        ({"max_length": 0}, "--max-length 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrepareOptions(**options)  # type: ignore[arg-type]


def features(folder: Path, ids: object = ("b", "zz", "a"), **arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ids.json").write_text(json.dumps(ids))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


FRAMES = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)


def test_features_join_by_id(tmp_path: Path) -> None:
    folder = features(tmp_path / "f", frames=FRAMES, text=np.eye(3, dtype=np.float16))
    options = PrepareOptions(core_on="none", features=(str(folder),))
    manifest = prepare(make_log({"u": "a b c a"}), tmp_path / "out", options, "")
    assert {name: (c.shape, c.kind, c.missing) for name, c in manifest.content.items()} == {
        "sequence": ((2, 4), "frames", 1),
        "visual": ((4,), "frames mean", 1),
        "text": ((3,), "title", 1),
    }
    assert manifest.dropped["feature rows of items not in the dataset"] == 1
    assert set(manifest.provenance.sources) == {"ids.json", "frames.npy", "text.npy"}
    dataset = Dataset.open(tmp_path / "out")
    content = feature_content([str(folder)], dataset.item_ids(), tmp_path).content
    raw, present = content["sequence"].read(0, 3)
    by_id = dict(zip(dataset.item_ids(), zip(raw, present, strict=True), strict=True))
    assert np.array_equal(by_id["a"][0], FRAMES[2])
    assert np.array_equal(by_id["b"][0], FRAMES[0])
    assert [by_id[i][1] for i in "abc"] == [True, True, False]
    assert np.array_equal(content["visual"].read(0, 3)[0][present], raw[present].mean(axis=1))


def test_ids_as_text_and_a_video_of_its_own(tmp_path: Path) -> None:
    folder = features(tmp_path / "f", frames=FRAMES, video=np.ones((3, 6), np.float32))
    (folder / "ids.json").unlink()
    (folder / "ids.txt").write_bytes(b"\xef\xbb\xbfb\r\nzz\r\na\r\n")  # as written on Windows
    found = feature_content([str(folder)], ["a", "b"], tmp_path)
    content, unused = found.content, found.unused
    assert (content["visual"].kind, content["visual"].shape) == ("video", (6,))
    assert np.array_equal(content["sequence"].read(0, 2)[0], FRAMES[[2, 0]])
    assert list(unused.values()) == [1]


NAN = FRAMES.copy()
NAN[1, 1, 2] = np.nan


@pytest.mark.parametrize(
    ("ids", "arrays", "message"),
    [
        (["a", "b"], {"frames": FRAMES}, r"frames\.npy has 3 rows, ids\.json has 2 ids"),
        (["a", "b", "a"], {"frames": FRAMES}, r"ids\.json repeats 1 ids"),
        (["a", "b", "c"], {"frames": NAN}, r"frames\.npy, row 1 \(from 0\) holds NaN"),
        (["a", "b", "c"], {"video": FRAMES}, r"video\.npy is float32 \(3, 2, 4\)"),
        (["a", "b", "c"], {"video": np.ones((3, 2), np.int64)}, r"video\.npy is int64"),
        (["a", "b", "c"], {"text": np.ones((3, 0))}, r"text\.npy is float64"),
        (["a", "b", "c"], {}, "has none of frames.npy"),
        (["a", "", "c"], {"frames": FRAMES}, "an entry that is not an id"),
        ({"a": 1}, {"frames": FRAMES}, "an entry that is not an id"),
    ],
)
def test_features_that_do_not_fit(tmp_path: Path, ids: object, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        feature_content([str(features(tmp_path / "f", ids, **arrays))], ["a"], tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"\x93NUMPY\x01\x00v\x00{"])
def test_feature_file_that_is_no_array(tmp_path: Path, content: bytes) -> None:
    folder = features(tmp_path / "f")
    (folder / "video.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"video\.npy cannot be read"):
        feature_content([str(folder)], ["a"], tmp_path)


def test_pickled_features_are_never_loaded(tmp_path: Path) -> None:
    folder = features(tmp_path / "f")
    np.save(folder / "video.npy", np.array([{}, {}, {}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"video\.npy cannot be read"):
        feature_content([str(folder)], ["a"], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither ids.txt nor ids.json"),
        (b"{", r"ids\.json cannot be read"),
        (b"", r"ids\.json is empty"),
        (b"[1,\n\xff]", r"ids\.json, line 2 is not UTF-8"),
    ],
)
def test_ids_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = features(tmp_path / "f", frames=FRAMES)
    (folder / "ids.json").unlink()
    if content is not None:
        (folder / "ids.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        feature_content([str(folder)], ["a"], tmp_path)


def test_layers_made_elsewhere(tmp_path: Path) -> None:
    states = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    folder = features(tmp_path / "f", video_layers=states, text_layers=states + 1)
    content = feature_content([str(folder)], ["b", "a"], tmp_path).content
    assert {field: c.kind for field, c in content.items()} == {
        "visual_layers": "video layers", "text_layers": "title layers",
    }  # fmt: skip
    assert np.array_equal(content["text_layers"].read(0, 2)[0], states[[0, 2]] + 1)


def test_command_prints_statistics_and_what_was_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("user,item,timestamp\n" + "u,a,1\nu,b,2\nu,c,3\nu,d,4\nu,a,1\nv,a,1\n")
    assert run("microlens", "--pairs", tmp_path / "p.csv", "--core-on", "none", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[:6]] == [
        ["users", "1"],
        ["items", "4"],
        ["interactions", "4"],
        ["average", "length", "4.00"],
        ["sparsity", "0.00%"],
        ["train", "rows", "1"],
    ]
    for line in ("dropped: 1 duplicate rows", "dropped: 1 users with fewer than 3", f"written to {tmp_path / 'out'}"):
        assert line in out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {"users": 1, "items": 4, "interactions": 4, "train_rows": 1}.items() <= manifest.items()
    with pytest.raises(UserError, match="is not an empty folder"):
        run("microlens", "--pairs", tmp_path / "p.csv", "--core-on", "none", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        (["shortvideo", "--interactions"], "user_id,pid,exposed_time"),
        (["recbole", "--inter"], "user_id:token\titem_id:token\ttimestamp:float"),
        (["table", "--user", "who", "--item", "what", "--time", "when", "--file"], "who,what,when"),
    ],
)
def test_command_reads_every_source(tmp_path: Path, arguments: list[str], header: str) -> None:
    separator = "\t" if "\t" in header else ","
    path = tmp_path / "log.csv"
    path.write_text("\n".join([header, *(separator.join(["u", item, str(at)]) for at, item in enumerate("cab"))]))
    assert run(*arguments, path, "--core-on", "none", "--out", tmp_path / "out") == 0
    assert histories(Dataset.open(tmp_path / "out")) == {"u": "c a b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segments", 5], "add --text minilm"),
        (["--segments", 0, "--text", "minilm"], "--segments 0"),
        (["--layers"], "--layers keeps the states"),
        (["--text", "glove", "--layers"], "leave --layers out"),
        (["--text", "./nowhere"], "there is no such folder"),
    ],
)
def test_command_refuses_an_encoder_that_cannot_work(tmp_path: Path, arguments: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):  # refused before the log is read, which does not even exist
        run("microlens", "--pairs", tmp_path / "absent.csv", *arguments, "--out", tmp_path / "out")


def test_command_generates_a_world(tmp_path: Path) -> None:
    assert run("synthetic", "--users", 60, "--items", 80, "--topics", 4, "--out", tmp_path / "out") == 0
    manifest = Dataset.open(tmp_path / "out").manifest
    assert manifest.truth is not None
    assert manifest.items == 80


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("microlens", "shortvideo", "recbole", "table", "synthetic"):
        with pytest.raises(SystemExit, match="0"):
            run(source, "--help")
        assert f"mealrec prepare {source} " in capsys.readouterr().out


def microlens() -> Path:
    folder = Path(os.environ.get("MEALREC_MICROLENS", "../shared/data/microlens-50k"))
    if not (folder / "MicroLens-50k_pairs.tsv").exists():
        pytest.skip(f"MicroLens-50k is not in {folder} (MEALREC_MICROLENS names another folder)")
    return folder


def test_microlens_4_core_has_the_published_size(tmp_path: Path) -> None:
    folder = microlens()
    pairs_, titles = folder / "MicroLens-50k_pairs.tsv", folder / "MicroLens-50k_titles.csv"
    assert run("microlens", "--pairs", pairs_, "--titles", titles, "--out", tmp_path / "out") == 0
    dataset = Dataset.open(tmp_path / "out")
    manifest: Manifest = dataset.manifest
    assert (manifest.users, manifest.items, manifest.interactions) == (49_744, 15_647, 351_798)
    assert manifest.splits.test.cold_targets == 1_873
    assert manifest.train_rows == 351_798 - 3 * 49_744
    dropped = sum(count for reason, count in manifest.dropped.items() if "interactions" in reason or "rows" in reason)
    assert manifest.interactions + dropped == 359_708
    assert all(dataset.item_titles())


def _read_slowly(out: Path, ready: Path) -> None:
    with sole_maker(out):
        ready.touch()
        time.sleep(60)


def test_a_second_prepare_is_told_before_its_work_and_a_killed_one_leaves_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ready = tmp_path / "data", tmp_path / "ready"
    first = fork_server().Process(target=_read_slowly, args=(out, ready))
    first.start()
    while not ready.exists():
        time.sleep(0.01)
    missing = ["prepare", "microlens", "--pairs", str(tmp_path / "none.csv"), "--out", str(out)]
    tiny = ["prepare", "synthetic", "--users", "80", "--items", "60", "--topics", "3", "--mean-length", "6"]
    for arguments in (missing, [*tiny, "--out", str(out)]):
        assert main(arguments) == 2
        assert "another process is making" in capsys.readouterr().err, "before the source is looked at"
    first.kill()
    first.join()
    for name in (".data.partial-0123abcd", ".data.features-0123abcd"):
        (tmp_path / name / "shards").mkdir(parents=True)
    assert main([*tiny, "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "ready"]


@pytest.mark.parametrize("values", [[], [5], [4, 0, 4, 2, 0, 9, 2]])
def test_codes_count_values_in_order_of_first_appearance(values: list[int]) -> None:
    code, names = codes(np.array(values, np.int64))
    assert names.tolist() == list(dict.fromkeys(values))
    assert names[code].tolist() == values
