"""What MLflow shows of a run besides its curves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from models.errors import UserError
from models.mealrec.model import MealRecOptions
from trainer.config.schema import RunConfig
from trainer.tracking import describe
from trainer.tracking.group import read_group, write_group
from trainer.tracking.plots import comparison, learning_curves

FIGURES = {"HR@10": 0.5, "NDCG@10": 0.25}
REPORT = {**FIGURES, "users": 9, "masked": {"HR@10": 0.75, "NDCG@10": 0.5}, "cold": {"users": 0}, "epoch": 3}


def write_run(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True)
    config = RunConfig.model_validate({"model": {"name": "mealrec", "backbone": "sasrec"}, "seed": 3})
    text = f"# mealrec train --name x\n{yaml.safe_dump(config.model_dump(mode='json'))}"
    (run_dir / "config.yaml").write_text(text)
    return run_dir


def test_only_the_chosen_backbone_has_parameters(tmp_path: Path) -> None:
    assert set(describe.BACKBONES) == set(get_args(get_type_hints(MealRecOptions)["backbone"]))
    config = describe.read_config(write_run(tmp_path / "a"))
    found = describe.parameters("first-mealrec-s3", config)
    assert sorted(found)[1:4] == ["compare.run", "compare.seed", "compare.system"]  # behind cluster.workers
    assert found["compare.run"] == "mealrec-s3"  # all that the page would show
    assert (found["compare.system"], found["compare.seed"], found["model.backbone"]) == ("mealrec", "s3", "sasrec")
    assert found["seed"] == "3"
    assert {"model.sasrec.hidden", "model.tcd.decay", "train.learning_rate"} <= set(found)
    assert not [
        name for name in found if name.startswith(("model.tedrec.", "model.cl4srec.", "tracking.", "data.path"))
    ]


def test_tags_say_what_runs_are_grouped_by(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "first-mealrec-s3")
    found = describe.tags(run_dir, describe.read_config(run_dir))
    assert (found["system"], found["backbone"], found["seed_group"]) == ("mealrec", "sasrec", "first-mealrec")
    assert found["mlflow.source.name"] == "mealrec train"
    assert found["host"]
    assert found["mlflow.user"]


def test_the_description_has_the_table_once_the_run_is_tested(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "a")
    config = describe.read_config(run_dir)
    assert "HR@10" not in describe.description(run_dir, config)
    (run_dir / "test.json").write_text(json.dumps(REPORT))
    text = describe.description(run_dir, config)
    assert "| | HR@10 | NDCG@10 |" in text
    assert "| all users | 0.5000 | 0.2500 |" in text
    assert "| history masked | 0.7500 | 0.5000 |" in text
    assert "cold" not in text  # no user of that kind


def test_a_group_knows_its_runs_and_a_resumed_one_stays_what_it_was(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name for name in ("x-s1", "x-s2")]
    write_group("x", folders)
    first = read_group(folders[0])
    assert first is not None
    assert first.folders == tuple(folders)
    write_group("x", [*folders, tmp_path / "runs" / "x-s3"])  # the same command, with one more seed
    again = read_group(tmp_path / "runs" / "x-s3")
    assert again is not None
    assert again.key == first.key
    (folders[1] / "test.json").write_text(json.dumps(REPORT))
    assert again.reports() == {"x-s2": REPORT}
    assert not again.ended()
    folders[0].rename(tmp_path / "runs" / "copy")
    assert read_group(tmp_path / "runs" / "copy") is None
    assert "| x-s2 | 0.7500 | 0.5000 |" in describe.group_description("x", again.reports(), 3)


def test_the_best_run_of_a_group_is_first(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    write_group("x", folders)
    for folder, value in zip(folders, (0.2, 0.4, 0.3), strict=True):
        (folder / "test.json").write_text(json.dumps({"NDCG@10": value}))
    group = read_group(folders[0])
    assert group is not None
    assert list(group.reports()) == ["b", "c", "a"]


def test_pictures_are_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    lines = [
        {"event": "epoch", "epoch": epoch, "metrics": {"loss": {"ranking": 1 / epoch}, "valid": {"HR@10": None}}}
        for epoch in (1, 2)
    ]
    assert not learning_curves(lines[:1], "a", tmp_path / "curves.png")
    assert learning_curves(lines, "a", tmp_path / "curves.png")
    comparison({"a": REPORT, "b": FIGURES}, "x", tmp_path / "bars.png")
    for name in ("curves.png", "bars.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_command_for_a_run_can_be_pasted_whatever_its_folder_is_called() -> None:
    command = describe.command_for("export", Path("/my runs/a'b"), "--out", "FOLDER")
    assert shlex.split(command) == ["mealrec", "export", "--run", "a'b", "--runs-dir", "/my runs", "--out", "FOLDER"]


def test_a_section_that_holds_no_settings_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: sasrec}\ntracking: 5\ntrain:\n")
    with pytest.raises(UserError, match=r"config\.yaml: tracking is no section of settings"):
        describe.read_config(tmp_path)
