"""Runs are seeds of one system if they are equal but for the seed, whatever their names; the rest is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.errors import UserError
from tests.helpers.finished_runs import hits, write_run
from trainer.comparison.runs import read_runs
from trainer.comparison.seeds import System, join


def joined(*folders: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the runs of each system by its label, and the notes."""
    systems, notes = join(read_runs(folders))
    return {system.label: [run.name for run in system.runs] for system in systems}, notes


def test_runs_that_are_equal_but_for_the_seed_are_joined_whatever_their_names(tmp_path: Path) -> None:
    systems, notes = joined(
        write_run(tmp_path / "first", seed=7),
        write_run(tmp_path / "other", "tedrec", seed=7),
        write_run(tmp_path / "again", "sasrec", "cluster.workers=2", "tracking.mlflow=false", "eval.ks=[5]", seed=8),
    )
    assert systems == {"first and 1 more": ["first", "again"], "other": ["other"]}
    (note,) = notes
    assert note.startswith("first and 1 more: the mean over seeds of first (seed 7), again (seed 8)")


def test_the_name_without_the_seed_is_the_label_if_it_means_these_runs_alone(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a-s{seed}", seed=seed) for seed in (1, 2)]
    assert joined(*folders)[0] == {"a": ["a-s1", "a-s2"]}
    other = write_run(tmp_path / "a", "tedrec")
    assert joined(*folders, other)[0] == {"a-s1 and 1 more": ["a-s1", "a-s2"], "a": ["a"]}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["model.hidden=128"], "model.hidden: 128 instead of 64"),
        (["train.epochs=3"], "train.epochs: 3 instead of "),
        (["eval.index=flat"], "eval.index: flat instead of exact; eval.depth: 100 instead of none"),
        (["engine.precision=bf16"], "engine.precision: bf16 instead of fp32"),
    ],
)
def test_names_alone_join_nothing_and_the_key_that_differs_is_told(
    tmp_path: Path, settings: list[str], why: str
) -> None:
    first, other = write_run(tmp_path / "a-s1", seed=1), write_run(tmp_path / "a-s2", "sasrec", *settings, seed=2)
    systems, notes = joined(first, other)
    assert systems == {"a-s1": ["a-s1"], "a-s2": ["a-s2"]}
    (note,) = notes
    assert note.startswith(f"a-s2 is not joined with a-s1, in spite of the name: {why}")


def test_another_system_or_other_data_is_not_joined(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a-s1", seed=1), write_run(tmp_path / "a-s2", seed=2, manifest="other")]
    systems, (note,) = joined(*folders)
    assert len(systems) == 2
    assert "manifest.json): other instead of m" in note
    systems, (note,) = joined(folders[0], write_run(tmp_path / "a-s3", "cl4srec", seed=3))
    assert len(systems) == 2
    assert "model.name: cl4srec instead of sasrec" in note
    assert note.endswith("more settings differ")


def test_a_repeat_is_not_another_seed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("copy", 1))]
    systems, notes = joined(*folders)
    assert systems == {"a and 1 more": ["a", "b"], "copy": ["copy"]}
    assert "copy has the settings and the seed (1) of a: it repeats that run" in notes[1]


def test_a_configuration_of_another_version_stays_alone(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a-s{seed}", seed=seed) for seed in (1, 2)]
    (folders[1] / "config.yaml").write_text("model: {name: sasrec, no_such_option: 1}")
    systems, (note,) = joined(*folders)
    assert len(systems) == 2
    assert "a-s2 is not joined with a-s1" in note
    assert "does not fit this version" in note


def test_a_run_of_an_earlier_version_is_not_accused_of_an_edit(tmp_path: Path) -> None:
    earlier = write_run(tmp_path / "earlier")
    lines = (earlier / "config.yaml").read_text().splitlines()
    (earlier / "config.yaml").write_text("\n".join(line for line in lines if "keep_optimizer" not in line))
    (run,) = read_runs([earlier])
    assert run.config is not None, "what is missing does not decide results"
    (earlier / "config.yaml").write_text("\n".join(line for line in lines if "hidden:" not in line))
    report = json.loads((earlier / "test.json").read_text())
    report["identity"]["config"] = "that of the earlier version"
    (earlier / "test.json").write_text(json.dumps(report))
    (run,) = read_runs([earlier])
    assert run.config is None
    (earlier / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="has changed since its test"):
        read_runs([earlier])


def test_reports_of_earlier_versions_are_joined_among_themselves(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a-s{seed}", seed=seed) for seed in (1, 2, 3)]
    for folder in folders[:2]:
        report = json.loads((folder / "test.json").read_text())
        del report["identity"]
        (folder / "test.json").write_text(json.dumps(report))
    systems, (_, note) = joined(*folders)
    assert systems == {"a-s1 and 1 more": ["a-s1", "a-s2"], "a-s3": ["a-s3"]}
    assert "a-s3 is not joined with a-s1, in spite of the name: data.path (sha256" in note
    assert note.endswith("m instead of unknown")


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place / "a", seed=seed) for seed, place in enumerate(("x", "y"))]
    assert joined(*folders)[0] == {f"{folders[0]} and 1 more": [str(folder) for folder in folders]}


def test_one_seed_is_marked_and_a_baseline_needs_none(tmp_path: Path) -> None:
    def count(*folders: Path) -> str:
        (system,) = join(read_runs(folders))[0]
        assert isinstance(system, System)
        return system.seed_count

    sasrec = [write_run(tmp_path / f"a-s{seed}", seed=seed) for seed in (1, 2)]
    popular = [write_run(tmp_path / f"p-s{seed}", "popularity", seed=seed) for seed in (1, 2)]
    random = write_run(tmp_path / "p-s3", "popularity", seed=3, rank=hits(2))
    assert (count(sasrec[0]), count(*sasrec)) == ("one", "2")
    assert (count(popular[0]), count(*popular), count(*popular, random)) == ("any", "any", "3")
