"""The commands of a run with `trainer.cli.main`: from data to recommendations in a tiny world; mistakes of users."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.tiny_runs import MODELS, RUN
from trainer.cli import main

PREPARE = ["prepare", "synthetic", "--users", "80", "--items", "60", "--topics", "3", "--mean-length", "6", "--frames",
           "3", "--width", "8", "--text-width", "6", "--max-length", "5"]  # fmt: skip


def settings(*more: str) -> list[str]:
    return [part for setting in (*RUN, *more) for part in ("--set", setting)]


def train(root: Path, name: str, model: str, *more: str, options: Sequence[str] = ()) -> int:
    runs = ["--runs-dir", str(root / "runs"), "--data", str(root / "data")]
    models = [*MODELS[model], *more] if model in MODELS else more
    return main(["train", "--recipe", "demo", "--model", model, "--name", name, *runs, *settings(*models), *options])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a trained SASRec and MealRec on it."""
    out = tmp_path_factory.mktemp("commands")
    assert main([*PREPARE, "--out", str(out / "data")]) == 0
    assert train(out, "base", "sasrec") == 0
    assert train(out, "meal", "mealrec", "train.epochs=1") == 0
    return out


def test_a_run_folder_holds_everything(root: Path) -> None:
    run = root / "runs/meal"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "test.json", "valid.json", "ranks-test.npz"} <= names
    test = json.loads((run / "test.json").read_text())
    assert {"HR@10", "NDCG@10", "HR@20", "NDCG@20", "masked", "warm", "cold", "truth", "inference"} <= set(test)
    assert len(test["choices"]) == 4, "every way of sampling is reported"
    valid = json.loads((run / "valid.json").read_text())
    best = max(valid["choices"].values(), key=lambda metrics: metrics["NDCG@10"])
    assert valid["choices"][valid["inference"]]["NDCG@10"] == best["NDCG@10"] == valid["NDCG@10"]
    assert test["inference"] == valid["inference"], "chosen on validation"
    assert [json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        "epoch", "test", "end"
    ]  # fmt: skip


def test_config_yaml_gives_the_same_run_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = root / "runs/base/config.yaml"
    assert main(["train", "--recipe", str(config), "--name", "again", "--runs-dir", str(root / "runs")]) == 0
    assert "again" in capsys.readouterr().out
    runs = [np.load(root / f"runs/{name}/ranks-test.npz", allow_pickle=False) for name in ("base", "again")]
    assert all(np.array_equal(runs[0][key], runs[1][key]) for key in runs[0])
    texts = [path.read_text().split("\n", 1)[1] for path in (config, root / "runs/again/config.yaml")]
    assert texts[0] == texts[1]


def test_resume_for_more_epochs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "runs/base", root / "runs/longer")
    longer = ["train.epochs=3", "train.keep_optimizer=true"]
    assert train(root, "longer", "sasrec", *longer, options=["--resume"]) == 2
    assert "cannot be trained on after epoch 2" in capsys.readouterr().err
    assert "epochs: 2" in (root / "runs/longer/config.yaml").read_text()
    assert train(root, "kept", "sasrec", "train.epochs=1", "train.keep_optimizer=true") == 0
    assert train(root, "kept", "sasrec", *longer, options=["--resume"]) == 0
    assert "going on from step" in capsys.readouterr().out
    assert "epochs: 3" in (root / "runs/kept/config.yaml").read_text(), "what the run did in the end"


@pytest.mark.parametrize("name", ["base", "meal"])
def test_evaluate_says_what_training_said(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = ["--runs-dir", str(root / "runs")], root / f"{name}-report.json"
    before = sorted(path.name for path in (root / "runs" / name).iterdir())
    assert main(["evaluate", "--run", name, *runs, "--out", str(out)]) == 0
    printed, test = capsys.readouterr().out, json.loads((root / "runs" / name / "test.json").read_text())
    assert f"{test['HR@10']:.4f}" in printed
    report = json.loads(out.read_text())
    for key in ("HR@10", "NDCG@10", "HR@20", "NDCG@20", "masked", "warm", "cold", "inference", "epoch"):
        assert report[key] == test[key], key
    assert main(["evaluate", "--run", name, *runs, "--set", "eval.index=flat", "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    assert "recall@20 against exact 1.0000" in printed
    assert f"{json.loads((root / 'runs' / name / 'valid.json').read_text())['NDCG@20']:.4f}" in printed
    assert sorted(path.name for path in (root / "runs" / name).iterdir()) == before


def test_export_index_recommend(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exported model answers without the history, and the same with exact ranking and a flat index."""
    model, run = root / "export", root / "runs/meal"
    assert main(["export", "--run", str(run), "--out", str(model)]) == 0
    assert f"written to {model}" in capsys.readouterr().out
    assert main(["index", "--model", str(model), "--kind", "flat"]) == 0
    items = pl.read_parquet(root / "data/items.parquet")["item"].to_list()
    offsets = np.load(root / "data/sequences/offsets.npy", allow_pickle=False)
    rows = np.load(root / "data/sequences/items.npy", allow_pickle=False)
    history = [items[row - 1] for row in rows[offsets[0] : offsets[1] - 1]]
    capsys.readouterr()
    ask = ["recommend", "--model", str(model), "--history", f"{' '.join(history)} nobody", "--k", "5", "--json"]
    answers = []
    for index in ("exact", "flat"):
        assert main([*ask, "--index", index]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    best = [[entry["item"] for entry in answer["recommendations"]] for answer in answers]
    assert len(best[0]) == 5
    assert not set(best[0]) & set(history)
    assert answers[0]["unknown"] == ["nobody"]
    assert best[0] == best[1]


def test_compare_and_several_systems(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base", "meal", "--runs-dir", str(root / "runs")]) == 0
    printed = capsys.readouterr().out
    test = json.loads((root / "runs/base/test.json").read_text())
    assert f"{test['HR@10']:.4f}" in printed
    assert train(root, "both", "sasrec,tedrec", "train.epochs=1") == 0
    printed = capsys.readouterr().out
    assert "both-sasrec" in printed
    assert "both-tedrec" in printed
    assert (root / "runs/both-tedrec/test.json").exists()


def test_resume_goes_on_with_the_systems_that_had_not_begun(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "runs/base", root / "runs/part-sasrec")
    two = [*settings("train.epochs=2"), "--resume"]
    before = (root / "runs/part-sasrec/ranks-test.npz").read_bytes()
    recipe, runs = str(root / "runs/base/config.yaml"), str(root / "runs")
    command = ["train", "--recipe", recipe, "--name", "part", "--model", "sasrec,popularity", "--runs-dir", runs]
    assert main([*command, *two]) == 0
    assert "part-popularity" in capsys.readouterr().out
    assert (root / "runs/part-popularity/test.json").exists()
    assert (root / "runs/part-sasrec/ranks-test.npz").read_bytes() == before


def test_a_dataset_that_moved_is_given_by_data(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Path(shutil.copytree(root / "runs/base", tmp_path / "runs/base")).parent
    config = runs / "base/config.yaml"
    config.write_text(config.read_text().replace(str(root / "data"), str(tmp_path / "gone")))
    ask = ["evaluate", "--run", "base", "--runs-dir", str(runs)]
    assert main(ask) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
    assert main([*ask, "--data", str(root / "data")]) == 0


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("name", "model", "more", "options", "said"),
    [
        ("base", "sasrec", (), (), "run 'base' exists"),
        ("fresh", "sasrec", (), ("--resume",), "nothing to resume"),
        ("a/b", "sasrec", (), (), "not a plain folder name"),
        ("", "sasrec", (), (), "not a plain folder name"),
        ("fresh", "sasrek", (), (), "did you mean 'sasrec'?"),
        ("fresh", "sasrec,", (), (), "--model"),
        ("fresh", "sasrec,sasrec", (), (), "--model"),
        ("fresh", "sasrec", ("train.epoch=1",), (), "did you mean 'epochs'?"),
        ("fresh", "sasrec", ("train.epochs",), (), "section.key=value"),
        ("fresh", "sasrec", ("engine.zero_stage=1",), (), "needs DeepSpeed"),
        ("fresh", "sasrec", ("cluster.workers=2",), (), "launcher inline runs one worker"),
        ("fresh", "sasrec", (), ("--recipe", "dmeo"), "did you mean 'demo'?"),
        ("fresh", "sasrec", (), ("--data", "nowhere"), "nowhere"),
        ("base", "sasrec", ("train.learning_rate=0.5",), ("--resume",), "train.learning_rate was 0.002, is 0.5"),
    ],
)
def test_a_mistake_in_training_is_one_message(
    root: Path, name: str, model: str, more: tuple[str, ...], options: tuple[str, ...], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert said in refused(capsys, train(root, name, model, *more, options=options))
    assert not (root / "runs/fresh").exists(), "nothing started"


def test_a_gpu_that_is_not_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "torch sees no GPU" in refused(capsys, train(root, "gpu", "sasrec", "engine.device=cuda"))


def test_a_dataset_without_text_is_refused_for_tedrec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("u,i,t\n" + "".join(f"u{u},i{(u * u + k) % 9},{k}\n" for u in range(9) for k in range(6)))
    table = ["--file", str(log), "--user", "u", "--item", "i", "--time", "t", "--core-on", "none"]
    assert main(["prepare", "table", *table, "--out", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    assert "text" in refused(capsys, train(tmp_path, "ted", "tedrec"))
    assert train(tmp_path, "sas", "sasrec", "train.epochs=1") == 0, "SASRec needs none"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "--run", "bass"], "(no config.yaml): did you mean 'base'?"),
        (["analyse", "--run", "bass"], "(no config.yaml): did you mean 'base'?"),
        (["register", "--run", "bass", "--as", "x"], "(no config.yaml): did you mean 'base'?"),
        (["track", "--run", "bass"], "(no metrics.jsonl): did you mean 'base'?"),
        (["update", "--run", "bass", "--data", "x"], "(no test.json): did you mean 'base'?"),
        (["clean", "bass"], "did you mean 'base'?"),
        (["evaluate", "--run", "base", "--set", "train.epochs=3"], "only eval.* can change"),
        (["evaluate", "--run", "base", "--set", "eval.index=faiss"], "eval.index"),
        (["export", "--run", "absent", "--out", "x"], "there is no run in"),
        (["evaluate", "--run", "started"], "no checkpoint of a validated epoch"),
    ],
)
def test_a_mistake_after_training_is_one_message(
    root: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = root / "runs/started"
    started.mkdir(exist_ok=True)
    shutil.copy(root / "runs/base/config.yaml", started)
    assert said in refused(capsys, main([*argv, "--runs-dir", str(root / "runs")]))


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--out", "x"]])
def test_a_run_of_an_earlier_version_is_refused_with_what_to_do(
    root: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = root / "runs/earlier"
    earlier.mkdir(exist_ok=True)
    text = (root / "runs/meal/config.yaml").read_text()
    (earlier / "config.yaml").write_text(text.replace("lambda_contrast:", "contrast:"))
    said = refused(capsys, main([*command, "--run", "earlier", "--runs-dir", str(root / "runs")]))
    assert "unknown option model.cl4srec.contrast: did you mean" in said
    assert "If an earlier version wrote it, use the run with that version, or train it again" in said


def test_evaluate_refuses_other_data(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PREPARE, "--seed", "8", "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    ask = ["evaluate", "--run", "base", "--runs-dir", str(root / "runs"), "--data", str(tmp_path / "other")]
    assert "other data" in refused(capsys, main(ask))


def test_export_does_not_write_over_a_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    runs = ["--runs-dir", str(root / "runs")]
    assert str(tmp_path) in refused(capsys, main(["export", "--run", "base", *runs, "--out", str(tmp_path)]))
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_run_whose_configuration_has_changed_is_opened_by_no_command(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate, export and compare look as --resume does: at the configuration, and at the data."""
    run = Path(shutil.copytree(root / "runs/base", tmp_path / "runs/base"))
    shutil.copytree(root / "runs/meal", tmp_path / "runs/meal")
    runs = ["--runs-dir", str(run.parent)]
    export = ["export", "--run", "base", "--out", str(tmp_path / "x")]
    commands = [["evaluate", "--run", "base"], export, ["compare", "meal", "base"]]
    text = (run / "config.yaml").read_text()
    for old, new, said in (
        ("batch_size: 64", "batch_size: 32", "was trained under another configuration"),
        ("index: auto", "index: flat", "was chosen by another evaluation"),
    ):
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new))
        for command in commands:
            assert main([*command, *runs]) == 2, command
            assert said in capsys.readouterr().err
    (run / "config.yaml").write_text(text)
    copy = Path(shutil.copytree(root / "data", tmp_path / "data"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "max_length": 4}))
    for command in commands[:2]:
        assert main([*command, *runs, "--data", str(copy)]) == 2
        assert "manifest.json has changed since" in capsys.readouterr().err
    report = json.loads((run / "test.json").read_text())
    other = {**report["identity"], "manifest": "0" * 64, "versions": {**report["identity"]["versions"], "torch": "1.0"}}
    (run / "test.json").write_text(json.dumps({**report, "identity": other}))
    assert main([*commands[2], *runs]) == 0
    warned = capsys.readouterr().err
    assert "trained with other data than " in warned
    assert "(here 1.0)" in warned
    del report["identity"]  # as earlier versions wrote it
    (run / "test.json").write_text(json.dumps(report))
    assert main([*commands[2], *runs]) == 0
    assert "warning" not in capsys.readouterr().err
