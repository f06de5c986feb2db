"""What the arguments of `mealrec compare` stand for: runs, families and folders; and what is told of other words."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UserError
from tests.helpers.finished_runs import write_run
from trainer.comparison.choose import Chosen, choose


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs"
    for name in ("demo-sasrec", "demo-sasrec-s10", "demo-sasrec-s9", "demo-2-sasrec", "demo-s3", "demo-content-knn"):
        write_run(folder / name, "content-knn" if name.endswith("knn") else "sasrec")
    write_run(folder / "alone", "popularity")
    (folder / ".trash").mkdir()
    (folder / "notes").mkdir()
    return folder


def names(chosen: Chosen) -> list[str]:
    return [folder.name for folder in chosen.folders]


def test_a_run_is_named_or_given_as_a_path(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    for argument in ("alone", "runs/alone", "runs/alone/", str(runs / "alone")):
        assert names(choose([Path(argument)], Path("runs"))) == ["alone"]
    monkeypatch.chdir(runs / "alone")
    assert names(choose([Path()], Path("runs"))) == ["alone"]


def test_a_family_is_what_train_names_so_and_nothing_else(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = ["demo-content-knn", "demo-s3", "demo-sasrec", "demo-sasrec-s9", "demo-sasrec-s10"]
    assert names(choose([Path("demo")], runs)) == family
    monkeypatch.chdir(runs.parent)
    assert names(choose([Path("runs/demo")], Path("elsewhere"))) == family
    assert names(choose([Path("demo-2")], runs)) == ["demo-2-sasrec"]


def test_a_folder_stands_for_every_run_in_it_and_so_do_no_arguments(runs: Path) -> None:
    every = names(choose([runs], Path("elsewhere")))
    assert len(every) == 7
    assert names(choose([], runs)) == every


def test_no_arguments_mean_the_folder_of_runs_whatever_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "runs", "runs-sasrec"):
        write_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert names(choose([], Path("runs"))) == ["a", "runs", "runs-sasrec"]


def test_a_configuration_that_is_a_trap_names_no_system(tmp_path: Path) -> None:
    (write_run(tmp_path / "x-sasrec") / "config.yaml").write_text("[" * 3000)
    write_run(tmp_path / "x-s1")
    assert names(choose([Path("x")], tmp_path)) == ["x-s1"]


def test_a_run_is_taken_once_and_the_first_argument_is_known(runs: Path) -> None:
    chosen = choose([Path("demo-sasrec"), Path("demo"), runs / "alone", Path("alone")], runs)
    assert names(chosen) == ["demo-sasrec", "demo-content-knn", "demo-s3", "demo-sasrec-s9", "demo-sasrec-s10", "alone"]
    assert [folder.name for folder in chosen.first] == ["demo-sasrec"]
    assert chosen.notes == []


def test_a_run_that_is_also_a_family_says_what_it_does_not_stand_for(runs: Path) -> None:
    chosen = choose([Path("demo-sasrec")], runs)
    assert names(chosen) == ["demo-sasrec"]
    assert "not shown: demo-sasrec-s9, demo-sasrec-s10" in chosen.notes[0]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("demo-sasrek", "no run 'demo-sasrek' in .*: did you mean 'demo-sasrec'"),
        ("dem", "did you mean 'demo'"),
        ("zzz", "known: .*alone"),
        ("notes", "there is no run 'notes'"),
    ],
)
def test_a_word_that_is_no_run_names_the_nearest(runs: Path, argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        choose([Path(argument)], runs)


def test_folders_without_runs_are_refused(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(UserError, match="there is no run in the folder"):
        choose([runs / "notes"], runs)
    with pytest.raises(UserError, match=r"nor any other in .*--runs-dir"):
        choose([Path("a")], tmp_path)


def test_runs_that_are_not_finished_are_left_out_with_the_command_that_finishes_them(tmp_path: Path) -> None:
    for name in ("x-s1", "x-s2", "x-s3"):
        write_run(tmp_path / name)
    (tmp_path / "x-s2/test.json").unlink()
    chosen = choose([Path("x")], tmp_path)
    assert names(chosen) == ["x-s1", "x-s3"]
    assert "x-s2 is left out, it is not finished" in chosen.notes[0]
    assert f"mealrec train --recipe {tmp_path}/x-s2/config.yaml --name x-s2" in chosen.notes[0]
    for name in ("x-s1", "x-s3"):
        (tmp_path / name / "test.json").unlink()
    with pytest.raises(UserError, match=r"no run of x is finished; to finish the first: mealrec train .*--resume"):
        choose([Path("x")], tmp_path)
