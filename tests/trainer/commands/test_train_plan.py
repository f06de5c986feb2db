"""What `mealrec train` will do for a dataset, and what it says about that before it starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from models.errors import UserError
from tests.helpers.tiny_runs import make_dataset
from trainer.commands import train
from trainer.commands.train_plan import Plan, make_plan
from trainer.data.format.manifest import MANIFEST, load_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("plan") / "data")


def with_content(data: Path, folder: Path, *fields: str, rows: int | None = None) -> Path:
    """A folder with a manifest alone, like that of `data` but with only the content `fields`, and so many rows."""
    manifest = load_manifest(data)
    content = {field: info for field, info in manifest.content.items() if field in fields}
    folder.mkdir()
    changed = manifest.model_copy(update={"content": content, "train_rows": rows or manifest.train_rows})
    (folder / MANIFEST).write_text(changed.dumps())
    return folder


def plan(data: Path | str, *arguments: str) -> Plan:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return make_plan(parser.parse_args(["--data", str(data), "--name", "mine", *arguments]))


def systems(made: Plan) -> list[str]:
    return [run.config.model.name for run in made.runs]


def test_without_a_model_the_baselines_sasrec_and_mealrec_are_trained(data: Path) -> None:
    made = plan(data)
    assert systems(made) == ["popularity", "content-knn", "transition-knn", "sasrec", "mealrec"]
    assert [run.name for run in made.runs][-1] == "mine-mealrec"
    assert {run.config.data.path for run in made.runs} == {str(data)}


def test_what_the_dataset_has_no_content_for_is_left_out_with_the_reason(data: Path, tmp_path: Path) -> None:
    made = plan(with_content(data, tmp_path / "log"))
    assert systems(made) == ["popularity", "transition-knn", "sasrec"]
    reasons = [line for line in made.told if line.startswith("without ")]
    assert reasons[0].startswith("without content-knn: content-knn needs item content that this dataset lacks. text: ")
    assert "without mealrec: " in reasons[1]
    assert "frames (`--features DIR` with frames.npy) or title segments" in reasons[1]
    pictures = plan(with_content(data, tmp_path / "video", "visual"))
    assert systems(pictures) == ["popularity", "content-knn", "transition-knn", "sasrec"]
    assert pictures.runs[1].config.model.options.needs == ("visual",)


def test_a_system_that_is_named_is_refused_where_its_content_lacks(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mealrec needs item content"):
        plan(with_content(data, tmp_path / "log"), "--model", "sasrec,mealrec")
    with pytest.raises(UserError, match="mealrec needs item content"):
        plan((tmp_path / "log").as_uri(), "--model", "mealrec")


def test_each_seed_is_checked_before_the_first_is_trained(data: Path) -> None:
    assert [run.config.seed for run in plan(data, "--model", "sasrec", "--seeds", "7,8").runs] == [7, 8]
    with pytest.raises(UserError, match="seed"):
        plan(data, "--model", "sasrec", "--seeds", "1,99999999999999999999999")


def test_what_is_told_of_the_size_is_what_came_out(data: Path, tmp_path: Path) -> None:
    large = with_content(data, tmp_path / "data", rows=50_000_000)
    told = plan(large, "--model", "sasrec", "--set", "train.epochs=9", "--set", "model.hidden=32").told[0]
    assert "train.epochs=9, train.patience=2, hidden=32 of sasrec, inner=512 of sasrec (" in told


def test_systems_with_values_of_their_own_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "systems: {sasrec: {train: {batch_size: 8}}}\n"
        "sizes: [{because: few, train: {epochs: 3, batch_size: 16}, systems: {sasrec: {train: {batch_size: 32}}}}]\n"
    )
    told = plan(data, "--recipe", str(tmp_path / "mine.yaml"), "--model", "sasrec,cl4srec").told[0]
    assert "rows: train.epochs=3, train.batch_size=32 of sasrec, train.batch_size=16 of cl4srec (few)" in told


@pytest.mark.parametrize(("rows", "batch"), [(200, 64), (30_000, 256), (500_000, 1024), (50_000_000, 2048)])
def test_the_default_recipe_suits_the_size_and_says_what_it_chose(
    rows: int, batch: int, data: Path, tmp_path: Path
) -> None:
    made = plan(with_content(data, tmp_path / "data", rows=rows))
    assert {run.config.train.batch_size for run in made.runs if run.config.model.options.trained} == {batch}
    told = made.told[0].splitlines()
    assert told[0].startswith(f"recipe default, for {rows:,} training rows: ")
    assert (f"train.batch_size={batch}" in told[0]) == (batch != 2048)
    assert told[1] == "Histories hold 5 items, as prepared (mealrec prepare --max-length)."


def test_a_setting_overrides_what_the_recipe_chose(data: Path) -> None:
    assert plan(data, "--set", "train.batch_size=7").runs[-1].config.train.batch_size == 7
    with pytest.raises(UserError, match="name it with --model"):
        plan(data, "--set", "model.hidden=8")
    assert systems(plan(data, "--set", "model.name=tedrec")) == ["tedrec"]


def test_a_recipe_of_one_s_own_may_name_its_system(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: tedrec")
    assert systems(plan(data, "--recipe", str(tmp_path / "mine.yaml"))) == ["tedrec"]
    assert plan(data, "--recipe", str(tmp_path / "mine.yaml")).told == []


def test_what_makes_a_step_grow_with_a_large_catalogue_is_told_with_the_setting_that_does_not(
    data: Path, tmp_path: Path
) -> None:
    def told(items: int, model: str, *settings: str) -> list[str]:
        folder = tmp_path / f"{items}-{model}-{len(settings)}"
        folder.mkdir()
        manifest = load_manifest(data)
        (folder / MANIFEST).write_text(manifest.model_copy(update={"items": items}).dumps())
        sets = [text for setting in settings for text in ("--set", setting)]
        return [line for line in plan(folder, "--model", model, *sets).told if "a step" in line]

    many = 1_000_000
    assert told(1000, "sasrec") == []
    lines = told(many, "mealrec")
    assert "--set model.sasrec.ranking.negatives=4096" in lines[0]
    assert "train.lazy_adam=true --set engine.name=torch" in lines[1]
    negatives, lazy = "model.ranking.negatives=64", ["train.lazy_adam=true", "engine.name=torch"]
    assert ["lazy_adam" in line for line in told(many, "sasrec", negatives)] == [True]
    assert told(many, "sasrec", negatives, *lazy) == []
    assert told(many, "morec") == []
    assert "no setting changes that" in told(many, "diqdiff")[0]
