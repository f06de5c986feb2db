"""`mealrec analyse` on tiny runs: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.finished_runs import write_run
from tests.helpers.finished_study import write_study
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.analysis.record import read_analysis
from trainer.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of MealRec and of popularity."""
    root = tmp_path_factory.mktemp("analysed")
    make_dataset(root / "data")
    for model in ("mealrec", "popularity"):
        settings = [f"--set={each}" for each in (*MODELS.get(model, []), *RUN, "train.epochs=1")]
        assert main(["train", "--quiet", "--recipe", "demo", "--model", model, "--name", model, "--data",
                     str(root / "data"), "--runs-dir", str(root / "runs"), *settings]) == 0  # fmt: skip
    return root / "runs"


def test_a_run_is_analysed_beside_another(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", "--run", "mealrec", "--against", "popularity", "--runs-dir", str(runs)]) == 0
    text = capsys.readouterr().out
    for told in ("Length of the history", "Warm and cold targets", "Calibration", "change by TCD", "popularity HR@10"):
        assert told in text, told
    found = read_analysis(runs / "mealrec/analysis.json")
    assert (found.system, found.against, found.users, found.sampled) == ("mealrec", "popularity", 80, 80)
    assert found.frames is not None
    assert found.embedding is not None
    assert len(found.neighbours) == 6
    assert all(near.name for each in found.neighbours for near in each.items)
    assert all(case.rank == 0 or case.rank > 10 for case in found.confident_misses)
    assert all(1 <= case.rank <= 10 for case in found.lucky_hits)
    assert found.command == f"mealrec analyse --run mealrec --against popularity --runs-dir {runs}"


def test_a_baseline_has_no_vectors(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["analyse", "--run", str(runs / "popularity"), "--sample", "20", "--out", str(tmp_path / "new")]
    assert main(arguments) == 0
    found = read_analysis(tmp_path / "new/analysis.json")
    assert (found.neighbours, found.frames, found.embedding, found.sampled) == ((), None, None, 20)
    assert found.calibration.users == 20
    assert found.command == f"mealrec analyse --run {runs / 'popularity'} --sample 20"
    assert not (runs / "popularity/analysis.json").exists()
    assert "Calibration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sample", "0"], "--sample 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--against", "nothing"], "there is no run in"),
    ],
)
def test_mistakes_are_told(runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert main(["analyse", "--run", "mealrec", "--runs-dir", str(runs), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_runs_on_other_data_are_not_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other")
    assert main(["analyse", "--run", "mealrec", "--runs-dir", str(runs), "--against", str(other)]) == 2
    assert "different test users" in capsys.readouterr().err


def test_a_report_refuses_a_damaged_analysis_and_makes_one_that_is_missing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "first", only=("embedding",))
    (path,) = study.rglob("analysis.json")
    path.write_text('{"version": 1}')
    assert main(["report", "--study", str(study), "--no-pictures", "--out", str(tmp_path / "out")]) == 2
    assert "make it again with mealrec analyse" in capsys.readouterr().err
    # a report analyses a run of the part itself, where nobody has
    shutil.rmtree(path.parent)
    shutil.copytree(runs / "mealrec", path.parent, ignore=shutil.ignore_patterns("analysis.json"))
    assert main(["report", "--study", str(study), "--no-pictures", "--out", str(tmp_path / "out")]) == 0
    assert path.exists()
    assert '"tsne-embedding-mealrec-s2020"' in (tmp_path / "out/index.html").read_text(encoding="utf-8")
