"""The end of `mealrec train`: which run to keep, what that means, and commands that work as they are printed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_runs import RUN, make_dataset
from trainer.cli import main
from trainer.commands.activation import activation
from trainer.commands.train_closing import _cut_short, _verdict
from trainer.commands.train_plan import PlannedRun
from trainer.config import recipe
from trainer.evaluation.choice import Choice, Standing, choose

BASELINES = {"popularity", "transition-knn"}


def verdict(*standings: tuple[str, float], p: float = 0.001, sure: float = 0.001, seeds: int = 1) -> str:
    """p: of the second; sure: of those after it."""
    ps = [None, p, *[sure] * len(standings)]
    made = tuple(Standing(s, f"x-{s}", v, p) for (s, v), p in zip(standings, ps, strict=False))
    return " ".join(_verdict(Choice(made, 1000, seeds), BASELINES))


def test_a_baseline_that_wins_is_named_as_one() -> None:
    said = verdict(("transition-knn", 0.03), ("sasrec", 0.02), ("popularity", 0.01))
    assert said.startswith(
        "Keep x-transition-knn: it has the best validation NDCG@10, 0.0300 (next x-sasrec, 0.0200; p 0.001 over 1,000 "
        "users). Test figures say what to expect of it, and must not choose."
    )
    assert "transition-knn is a baseline, fitted in seconds: on these data no trained system is worth its cost" in said
    assert "as good a choice" not in said
    assert "worth its cost" not in verdict(("transition-knn", 0.03), ("popularity", 0.02)), "nothing was trained"


def test_a_trained_system_that_wins_is_measured_by_the_best_baseline() -> None:
    said = verdict(("mealrec", 0.03), ("sasrec", 0.028), ("transition-knn", 0.02), ("popularity", 0.01), p=0.2)
    assert "These users do not tell the two apart: the cheaper one is as good a choice." in said
    assert said.endswith("Training pays here: it is 50% above the best baseline, x-transition-knn.")
    assert "Training pays" not in verdict(("mealrec", 0.03), ("sasrec", 0.028)), "there is no baseline"
    tied = verdict(("mealrec", 0.0301), ("transition-knn", 0.03), p=0.8)
    assert tied.endswith("These users do not tell the two apart: the cheaper one is as good a choice.")
    near = verdict(("mealrec", 0.0302), ("sasrec", 0.0301), ("transition-knn", 0.03), p=0.9, sure=0.7)
    assert "Training pays" not in near
    assert "Figures are means of 3 seeds" in verdict(("mealrec", 0.03), ("sasrec", 0.028), seeds=3)


def test_a_run_that_ended_while_it_improved_is_named() -> None:
    runs = [
        PlannedRun(system, recipe.load("demo", system, ["train.epochs=4"], "data"), Path(system))
        for system in ("sasrec", "tedrec", "popularity")
    ]
    said = _cut_short(runs, {"sasrec": {"epoch": 4}, "tedrec": {"epoch": 3}, "popularity": {"epoch": 4}})
    assert said == [
        "Best on validation in the last epoch, so longer training may do better (--set train.epochs=8): sasrec."
    ]
    assert _cut_short(runs[1:], {"tedrec": {"epoch": 3}, "popularity": {}}) == []


def test_a_shell_without_the_environment_activates_it_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "a b/.venv"))
    monkeypatch.chdir(tmp_path)
    assert activation({}) == [". 'a b/.venv/bin/activate'"]
    assert activation({"VIRTUAL_ENV": str(tmp_path / "other")}) == [". 'a b/.venv/bin/activate'"]
    assert activation({"VIRTUAL_ENV": str(tmp_path / "a b/.venv")}) == []
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert activation({}) == []


def test_from_a_dataset_to_recommendations_by_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data")
    given = [word for setting in [*RUN, "train.epochs=1"] for word in ("--set", setting)]
    assert main(["train", "--data", "data", "--name", "my first", *given]) == 0
    said = capsys.readouterr().out
    folders = {path.name.removeprefix("my first-"): [path] for path in (tmp_path / "runs").iterdir()}
    assert sorted(folders) == ["content-knn", "mealrec", "popularity", "sasrec", "transition-knn"]
    kept = choose(folders).standings[0].best_run
    assert f"\nKeep {kept}: " in said
    assert "so longer training may do better (--set train.epochs=2): my first-sasrec, my first-mealrec." in " ".join(
        said.split()
    )
    commands = [shlex.split(line) for line in said.partition("\nnext:\n")[2].splitlines()]
    assert [words[:2] for words in commands[-3:]] == [["mealrec", verb] for verb in ("compare", "export", "recommend")]
    for words in commands[-3:]:
        assert main(words[1:]) == 0
    assert "rank" in capsys.readouterr().out
