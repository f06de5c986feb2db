"""An extraction from start to end: order, failures, resuming, giving up; and with Ray, processes that die."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch

from cluster.failures import PreflightError, WorkerFailed
from cluster.ray_data import plan_stages, usable_gpus
from models.errors import UserError
from tests.helpers.extraction_job import GATED, WIDTH, NumberJob, run
from tests.helpers.paths import ROOT
from trainer.data.features import open_features, read_vectors
from trainer.extract.pipeline.execute import DIED, Limits, Where, extract
from trainer.extract.pipeline.finish import reasons

NUMBERS = [str(n) for n in range(23)]


def vectors(out: Path, scratch: Path) -> dict[str, float]:
    """Item -> its number, read from the finished features in `out`."""
    features = open_features(str(out))
    scratch.mkdir()
    arrays = read_vectors(features, scratch)
    assert set(arrays) == {"text"}
    assert arrays["text"].shape == (features.manifest.items, WIDTH)
    assert (arrays["text"] == arrays["text"][:, :1]).all()
    return dict(zip(features.items["item"].to_list(), arrays["text"][:, 0].tolist(), strict=True))


def failures(out: Path) -> dict[str, str]:
    with (out / "failed.csv").open(newline="") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a finished extraction that must not depend on interruptions."""
    manifest = json.loads((out / "features.json").read_text())
    manifest.pop("provenance")
    names = ["items.parquet", "failed.csv", *manifest["shards"]]
    return {"manifest": json.dumps(manifest).encode(), **{name: (out / name).read_bytes() for name in names}}


def test_all_items_in_the_order_of_the_list(tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", NUMBERS)
    assert vectors(tmp_path / "out", tmp_path / "x") == {f"i{n}": n for n in range(23)}
    assert (outcome.items, outcome.manifest.failed, failures(tmp_path / "out")) == (23, 0, {})
    items = open_features(str(tmp_path / "out")).items
    assert items["row"].to_list() == list(range(1, 24))
    assert items["title"].to_list()[:3] == ["title 0", None, "title 2"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "failed.csv", "features.json", "items.parquet", "shards",
    ]  # fmt: skip


def test_what_fails_is_listed_with_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    sources = ["0", "bad file", "2", "nan", *["bad luck"] * 4, "8", "huge", "10"]
    outcome = run(tmp_path / "out", sources, failures="100%")
    assert vectors(tmp_path / "out", tmp_path / "x") == {"i0": 0, "i2": 2, "i8": 8, "i10": 10}
    told = "the encoder gave NaN, or more than float16 holds"
    assert list(failures(tmp_path / "out").items()) == [
        ("i1", "bad file"), ("i3", told), *((f"i{n}", "bad luck") for n in range(4, 8)), ("i9", told),
    ]  # fmt: skip
    assert outcome.manifest.failed == 7
    assert outcome.reasons.startswith("4 bad luck; 2 the encoder gave NaN")


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 2 items could be encoded: 2 bad"):
        run(tmp_path / "out", ["bad", "bad"], failures="100%")
    assert failures(tmp_path / "out") == {"i0": "bad", "i1": "bad"}


def test_a_killed_extraction_goes_on_and_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    assert_a_kill_changes_nothing(tmp_path, "inline", {}, in_hand=4)


@pytest.mark.ray
def test_a_killed_extraction_under_ray_goes_on_and_ends_as_the_undisturbed_one(
    tmp_path: Path, ray_head: dict[str, str]
) -> None:
    """The killed extraction has its own Ray, which ends with it; then it continues on the shared head."""
    assert_a_kill_changes_nothing(tmp_path, "ray", ray_head, in_hand=4 * plan_stages(2, 0, 1, 1).in_hand)


def assert_a_kill_changes_nothing(tmp_path: Path, launcher: str, environment: dict[str, str], in_hand: int) -> None:
    """in_hand: the most items that may have been loaded, but not kept, when the extraction is killed.

    It cannot end before: its last items wait for a file. environment: variables for the extraction that goes on.
    """
    count, log, gate = 80, tmp_path / "log", tmp_path / "gate"
    undisturbed = tmp_path / "undisturbed"
    run(undisturbed, [str(n) for n in range(count)])
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "tests.helpers.extraction_job",
        str(out),
        str(log),
        str(gate),
        str(count),
        launcher,
    ]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("unfinished/parts/*.npz"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if launcher == "ray":
        time.sleep(3)  # Ray's workers end with their driver, but may first load the items that they have begun
    kept = len(list(out.glob("unfinished/parts/*.npz")))
    assert 3 <= kept <= GATED / 4
    gate.touch()
    assert not (out / "features.json").exists()
    with pytest.raises(UserError, match="has not ended; give the same"):
        open_features(str(out))
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, timeout=200)
    assert files_of(out) == files_of(undisturbed)
    loads = Counter(log.read_text().split())
    assert len(loads) == count
    twice = sum(loads.values()) - count
    assert twice <= in_hand, f"{twice} items were loaded twice"


def test_cut_off_while_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", NUMBERS)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.extract.pipeline.finish.write_text", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            run(tmp_path / "out", NUMBERS)
    (tmp_path / "out" / "shards" / "items-00007.tar").write_bytes(b"of an earlier try")
    run(tmp_path / "out", NUMBERS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out" / "shards" / "items-00007.tar").exists()


def test_it_is_not_continued_otherwise(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run(tmp_path / "out", [*NUMBERS, "boom later"])
    with pytest.raises(UserError, match="batch_size was 4 and is 8; choose another --out"):
        run(tmp_path / "out", NUMBERS, unit=8)
    (tmp_path / "out" / "unfinished" / "parts" / "00000002.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"00000002\.npz is damaged .* remove it"):
        run(tmp_path / "out", NUMBERS)
    (tmp_path / "out" / "unfinished" / "settings.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run(tmp_path / "out", NUMBERS)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    run(tmp_path / "out", NUMBERS)
    with pytest.raises(UserError, match="holds a finished extraction \\(23 items\\)"):
        run(tmp_path / "out", NUMBERS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="neither empty nor an unfinished extraction"):
        run(tmp_path / "other", NUMBERS)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_files_of_the_user_are_neither_removed_nor_taken_for_ours(tmp_path: Path) -> None:
    """Whatever their names look like; what a killed process of ours left is removed."""
    out, sources = tmp_path / "out", [*NUMBERS, "bad"]
    with pytest.raises(UserError, match="more than --max-failures allows"):
        run(out, sources, failures="0")
    mine = [".env.production", ".features.json.swp", ".failed.csv.0123abcd.bak", ".notes.0123abcd.tmp",
            "unfinished/thesis.tex", "unfinished/parts/.keep", "shards/mine.tar"]  # fmt: skip
    left = [".features.json.0123abcd.tmp", ".failed.csv.0123abcd.tmp", ".probe-0123456789abcdef",
            "unfinished/parts/.00000003.npz.0123abcd.tmp", "shards/items-00009.tar"]  # fmt: skip
    (out / "shards").mkdir()
    for name in (*mine, *left):
        (out / name).write_text("mine")
    run(out, sources, failures="1")
    assert {name: (out / name).read_text() for name in mine} == dict.fromkeys(mine, "mine")
    assert not any((out / name).exists() for name in left)
    for name in (".env.production", "shards/mine.tar", "failed.csv", "unfinished/thesis.tex"):
        file = tmp_path / "other" / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(UserError, match="neither empty nor an unfinished extraction"):
            run(tmp_path / "other", NUMBERS)
        file.unlink()
        for parent in file.parents[: len(Path(name).parts)]:
            parent.rmdir()  # fails if anything was written


def test_it_gives_up_and_goes_on_with_more_patience(tmp_path: Path) -> None:
    sources = ["bad" if n % 2 else str(n) for n in range(20)]
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"4 of 20 items have failed, more than --max-failures allows: 4 bad"):
        run(tmp_path / "out", sources, NumberJob(log), failures="15%")
    assert len(failures(tmp_path / "out")) == 4
    run(tmp_path / "out", sources, NumberJob(log), failures="10")
    assert len(failures(tmp_path / "out")) == 10
    assert len(log.read_text().splitlines()) == 20, "no item was loaded twice"


def test_failed_items_are_tried_again_on_request(tmp_path: Path) -> None:
    job = NumberJob(tmp_path / "log")
    sources = ["0", "1", "bad 2", "3", "4", "5", "bad 6", "bad 7", "8", "bad 9"]
    with pytest.raises(UserError):
        run(tmp_path / "out", sources, job, failures="2")
    mended = ["0", "1", "2", "3", "4", "5", "bad again", "7", "8", "9"]
    with pytest.raises(UserError):
        run(tmp_path / "out", mended, job, failures="2")
    run(tmp_path / "out", mended, job, failures="2", again=True)
    assert vectors(tmp_path / "out", tmp_path / "x") == {f"i{n}": n for n in range(10) if n != 6}
    assert failures(tmp_path / "out") == {"i6": "bad again"}
    assert Counter((tmp_path / "log").read_text().splitlines())["0"] == 1


def test_too_many_failures_in_the_last_unit_are_too_many_the_next_time_too(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="3 of 4 items have failed"):
            run(tmp_path / "out", ["bad", "bad", "bad", "3"], failures="1")


def test_what_a_kill_can_leave_is_no_hindrance(tmp_path: Path) -> None:
    run(tmp_path / "whole", NUMBERS)
    (tmp_path / "out" / "unfinished" / "parts").mkdir(parents=True)  # before its settings were written
    (tmp_path / "out" / ".failed.csv.0123abcd.tmp").touch()
    run(tmp_path / "out", NUMBERS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out" / ".failed.csv.0123abcd.tmp").exists()
    (tmp_path / "out" / "unfinished").mkdir()  # its removal was cut off
    with pytest.raises(UserError, match="holds a finished extraction"):
        run(tmp_path / "out", NUMBERS)
    assert not (tmp_path / "out" / "unfinished").exists()


@pytest.mark.parametrize(("given", "most"), [("0", 0), ("7", 7), ("50%", 100), ("0.5%", 1), ("100 %", 200)])
def test_most_failures(given: str, most: int) -> None:
    assert Limits(failures=given).most_failures(200) == most


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "nan", "inf%", "%"])
def test_most_failures_refused(given: str) -> None:
    with pytest.raises(UserError, match="--max-failures"):
        Limits(failures=given).most_failures(200)


def test_vectors_of_zeros_become_the_mean(tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", ["1", "zero", "5", "zero", "3"], NumberJob(zero_rows_are_mean=True))
    assert outcome.manifest.unknown == 2
    assert vectors(tmp_path / "out", tmp_path / "x") == {"i0": 1, "i1": 3, "i2": 5, "i3": 3, "i4": 3}


def test_a_start_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    def no_list() -> pl.DataFrame:
        raise UserError("no list")

    with pytest.raises(UserError, match="no list"):
        extract(NumberJob(), no_list, tmp_path / "out", limits=Limits(), where=Where(), command="", sources={})
    assert list(tmp_path.iterdir()) == []


def test_an_error_at_one_item_is_its_reason_and_one_of_the_encoder_comes_out(tmp_path: Path) -> None:
    run(tmp_path / "a", ["1", "boom"])
    assert re.fullmatch(r"error: KeyError at extraction_job\.py:\d+: 'boom'", failures(tmp_path / "a")["i1"])
    with pytest.raises(KeyError, match="boom later"):
        run(tmp_path / "b", ["1", "boom later"])
    with pytest.raises(UserError, match="what to do"):
        run(tmp_path / "c", ["1", "mistake"])


def test_no_vector_but_zeros(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no title has a word that the encoder knows"):
        run(tmp_path / "out", ["zero", "zero"], NumberJob(zero_rows_are_mean=True))


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_under_ray_processes_that_die_take_nobody_along(tmp_path: Path) -> None:
    sources = ["0", "die", "2", "bad", "4", "die later", "6", "7", "8"]
    run(tmp_path / "out", sources, launcher="ray", loaders=2, encoders=1)
    assert vectors(tmp_path / "out", tmp_path / "x") == {f"i{n}": n for n in range(9) if n not in (1, 3, 5)}
    assert failures(tmp_path / "out") == {"i1": DIED, "i3": "bad", "i5": DIED}


@pytest.mark.ray
@pytest.mark.usefixtures("on_ray_head")
def test_under_ray_exceptions_come_home_with_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed) as caught:
        run(tmp_path / "out", ["1", "2", "3", "4", "boom later", *NUMBERS[5:]], launcher="ray")
    assert caught.value.kind == "KeyError"
    assert "in _vectors" in caught.value.detail


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "loaders", "encoders"),
    [
        (1, 0, (None, None), 1, 1),
        (2, 0, (None, None), 1, 1),
        (8, 0, (None, None), 4, 4),
        (16, 1, (None, None), 15, 1),
        (16, 4, (None, 2), 14, 2),
        (2, 0, (2, 1), 2, 1),
        (8, 0, (1, None), 1, 7),
    ],
)
def test_sizes_of_the_stages(
    cpus: int, gpus: int, asked: tuple[int | None, int | None], loaders: int, encoders: int
) -> None:
    stages = plan_stages(cpus, gpus, *asked)
    assert (stages.loaders, stages.encoders, stages.gpus) == (loaders, encoders, gpus > 0)


def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(tmp_path: Path) -> None:
    assert [usable_gpus(2, None), usable_gpus(2, True), usable_gpus(2, False), usable_gpus(0, None)] == [2, 2, 0, 0]
    if not torch.cuda.is_available():
        for launcher in ("inline", "ray"):
            with pytest.raises(PreflightError, match="no GPU here"):
                run(tmp_path / launcher, NUMBERS, launcher=launcher, device="cuda")


def test_reasons_are_counted(tmp_path: Path) -> None:
    from tests.helpers.extraction_job import items_of
    from trainer.extract.pipeline.work import Work

    work = Work(tmp_path, items_of(NUMBERS))
    work.failed = {n: f"reason {n % 6}: at {n} s" for n in range(13)}
    assert reasons(work) == "3 reason 0; 2 reason 1; 2 reason 2; 2 reason 3; 2 reason 4; ..."
