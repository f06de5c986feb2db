"""`--out` of every command: through a link, which is kept, and onto a mount point, which is told before the work."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.helpers.finished_study import write_study
from tests.helpers.inspected import made, named
from tests.helpers.small_disk import small_disk
from tests.helpers.tiny_runs import MODELS, RUN
from trainer import cli
from trainer.cli import main
from trainer.extract.titles.job import TitleJob

WORLD = ["prepare", "synthetic", "--users", "60", "--items", "60", "--topics", "3", "--favourites", "2",
         "--mean-length", "6", "--frames", "3", "--width", "8", "--text-width", "4"]  # fmt: skip
FOLDERS = ["prepare", "extract", "export", "analyse", "report"]
FILES = ["evaluate", "recommend", "inspect"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A command of each verb, without its --out."""
    home = tmp_path_factory.mktemp("home")
    assert main([*WORLD, "--out", str(home / "data")]) == 0
    settings = [word for setting in [*MODELS["sasrec"], *RUN, "train.epochs=1"] for word in ("--set", setting)]
    run = ["--runs-dir", str(home / "runs"), "-q"]
    train = ["train", "--recipe", "demo", "--data", str(home / "data"), "--model", "sasrec", "--name", "a", *settings]
    assert main([*train, *run]) == 0
    assert main(["export", "--run", "a", *run, "--out", str(home / "model")]) == 0
    (home / "titles.csv").write_text("item,title\na,one cat\nb,two dogs\n")
    pl.DataFrame({"user": ["u"], "items": [["i1", "i2"]]}).write_parquet(home / "users.parquet")
    write_study(home / "runs" / "study", only=["noise"])
    features = home / "features"
    made(features, TitleJob("e"), {"text": pl.DataFrame({"a": [1.0, 2.0, 3.0]}).to_numpy()}, named(3))
    return {
        "prepare": WORLD,
        "extract": ["extract", "titles", "--titles", str(home / "titles.csv"), "--launcher", "inline", "--encoder",
                    "glove"],
        "export": ["export", "--run", "a", *run],
        "analyse": ["analyse", "--run", "a", "--sample", "20", *run],
        "report": ["report", "--study", "study", "--no-pictures", *run],
        "evaluate": ["evaluate", "--run", "a", *run],
        "recommend": ["recommend", "--model", str(home / "model"), "--users", str(home / "users.parquet")],
        "inspect": ["inspect", "--features", str(features), "--item", "i1"],
    }  # fmt: skip


def test_no_command_with_an_out_is_missing_here() -> None:
    def has_out(verb: str) -> bool:
        parsers = [cli.parser_of(verb)]
        for action in parsers[0]._actions:
            parsers += list((action.choices or {}).values()) if action.nargs == "A..." else []  # type: ignore[union-attr]
        return any("--out" in action.option_strings for parser in parsers for action in parser._actions)

    assert {verb for verb in cli.VERBS if has_out(verb)} == {*FOLDERS, *FILES}


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_kept_and_its_target_filled(
    commands: dict[str, list[str]], tmp_path: Path, verb: str, there: bool
) -> None:
    """The target is there and empty, or not there at all."""
    if verb == "recommend":
        target, link = tmp_path / "far/out.parquet", tmp_path / "link.parquet"
    else:
        target, link = tmp_path / "far/out", tmp_path / "link"
    if there and verb in FOLDERS:
        target.mkdir(parents=True)
    elif there:
        target.parent.mkdir()
        if verb != "recommend":  # which takes a file that is there for its own to be gone on with
            target.touch()
    link.symlink_to(target)
    assert main([*commands[verb], "--out", str(link)]) == 0
    assert link.is_symlink()
    assert link.resolve() == target
    assert any(target.iterdir()) if verb in FOLDERS else target.stat().st_size
    hidden = [path.name for path in target.parent.iterdir() if path != target]
    assert hidden == [], "nothing else is left beside it"


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_mount_point_is_refused_before_the_work_or_filled(
    commands: dict[str, list[str]], tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "mounted", mib=16) as mounted:
        status = main([*commands[verb], "--out", str(mounted)])
        err = capsys.readouterr().err
        if verb in ("extract", "analyse"):  # they write files into the folder, and do not replace it
            assert status == 0
            assert any(mounted.iterdir())
        else:
            assert status == 2
            assert "cannot be replaced as a whole (device or resource busy), as a mount point cannot" in err.lower()
            assert list(mounted.iterdir()) == []
            assert main([*commands[verb], "--out", str(mounted / "new")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
def test_a_place_where_nothing_can_be_made_is_one_message(
    commands: dict[str, list[str]], tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder is to be (for commands that write a file, a folder), and a file above it."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    wrong = tmp_path / ("file" if verb in FOLDERS else "folder.parquet")
    for out in (wrong, tmp_path / "file" / "below.parquet"):
        assert main([*commands[verb], "--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert "choose another" in err or "give the name of a file" in err
        assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.parquet"]
