"""`mealrec update`: weights are found again by raw id, both models are tested, the better one is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from models.contract import Baseline
from retrieval import Recommender
from tests.helpers.tiny_runs import MODELS, RUN
from trainer.cli import main
from trainer.data.format.dataset import Dataset
from trainer.data.format.writer import write_dataset
from trainer.data.known_rows import KnownRows
from trainer.evaluation.earlier import evaluate_earlier
from trainer.evaluation.run_ranks import read_ranks
from trainer.training.checkpoint import CheckpointStore
from trainer.training.runs import open_run


def write(out: Path, histories: dict[str, list[str]], order: Sequence[str], max_length: int = 6) -> Path:
    """A dataset with these histories, and the items in this order."""
    row = {item: place for place, item in enumerate(order, start=1)}
    items = [row[item] for history in histories.values() for item in history]
    lengths = [len(history) for history in histories.values()]
    write_dataset(
        out, user_ids=list(histories), item_ids=list(order), offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=np.array(items, np.int32), content={}, max_length=max_length,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log and a run on it; the log as it has grown, whose users and items have other rows; and the run updated."""
    root = tmp_path_factory.mktemp("update")
    draw = np.random.default_rng(0)
    old = [f"v{n}" for n in range(30)]
    histories = {f"u{n}": [str(v) for v in draw.choice(old, 8, replace=False)] for n in range(40)}
    write(root / "old", histories, old)
    new = [*(f"w{n}" for n in range(4)), *reversed(old[1:])]  # v0 is gone, four items came
    grown = {f"n{n}": [str(v) for v in draw.choice(new, 5, replace=False)] for n in range(6)}
    grown["only new"] = ["w0", "w1", "v3"]
    for n, (user, history) in enumerate([*histories.items()][5:]):
        grown[user] = [v for v in history if v != "v0"] + [str(v) for v in draw.choice(new, n % 3)]
    write(root / "new", grown, new)
    write(root / "longer", grown, new, max_length=9)
    shutil.copytree(root / "old", root / "other")
    settings = [f"--set={each}" for each in (*MODELS["sasrec"], *RUN, "train.keep_optimizer=true")]
    train = ["train", "--recipe", "demo", "--model", "sasrec", "--name", "one", "--data", str(root / "old")]
    assert main([*train, *settings, "--runs-dir", str(root / "runs"), "--quiet"]) == 0
    assert updated(root) == 0
    return root


def updated(root: Path, *more: str, data: str = "new") -> int:
    runs = str(root / "runs")
    return main(["update", "--run", "one", "--data", str(root / data), "--runs-dir", runs, "--quiet", *more])


def known(root: Path) -> KnownRows:
    return KnownRows.between(Dataset.open(root / "old"), Dataset.open(root / "new"))


def test_rows_are_found_again_by_raw_id(world: Path) -> None:
    rows, old, new = known(world), Dataset.open(world / "old"), Dataset.open(world / "new")
    assert rows.counts() == {"known_items": 29, "new_items": 4, "known_users": 35, "new_users": 7}
    assert rows.items[0] == 0
    for row, before in enumerate(rows.items[1:].tolist()):
        item = new.item_ids()[row]
        assert old.item_ids()[before - 1] == item if before > 0 else item.startswith("w")
    for row, before in enumerate(rows.users.tolist()):
        user = new.user_ids()[row]
        assert old.user_ids()[before] == user if before >= 0 else user.startswith(("n", "only"))


def test_training_begins_with_the_weights_and_moments_of_the_old_run(world: Path) -> None:
    from trainer.training.build import build_model
    from trainer.training.growth import carried

    opened, changed = open_run(world / "runs/one"), open_run(world / "runs/one-u1")
    found = CheckpointStore(world / "runs/one/checkpoints").latest_and_best()
    assert found is not None
    assert found[1] is not None
    fresh = build_model(changed.config, changed.loaded)
    assert not isinstance(fresh, Baseline)
    begun, told = carried(fresh, found[1], known(world))
    assert told == []
    rows = torch.from_numpy(known(world).items)
    kept, name = rows >= 0, "item_embedding.weight"
    for group, key in (("model", name), ("optimizer", f"{name}/exp_avg"), ("optimizer", f"{name}/exp_avg_sq")):
        before, now = found[1].tensors[group][key], begun[group][key]
        assert before.any()
        torch.testing.assert_close(now[kept], before[rows[kept]], rtol=0, atol=0)
    torch.testing.assert_close(begun["model"][name][~kept], fresh.item_embedding.weight[~kept], rtol=0, atol=0)
    assert not begun["optimizer"][f"{name}/exp_avg"][~kept].any()
    others = begun["model"].keys() - {name}
    assert all(torch.equal(begun["model"][each], found[1].tensors["model"][each]) for each in others)
    assert opened.epoch >= 1
    steps = CheckpointStore(world / "runs/one-u1/checkpoints").steps()
    assert max(steps) > 0, "it has trained on"


def test_the_old_model_is_tested_as_it_would_answer(world: Path, tmp_path: Path) -> None:
    """Against the place of each target in the whole list that an export recommends."""
    assert main(["export", "--run", "one", "--runs-dir", str(world / "runs"), "--out", str(tmp_path / "e"), "-q"]) == 0
    recommender, new = Recommender.load(tmp_path / "e"), Dataset.open(world / "new")
    run, names = open_run(world / "runs/one"), new.item_ids()
    found = evaluate_earlier(run.model, known(world), new, "test", run.config.eval, torch.device("cpu"))
    plain, masked = [], []
    for user in range(new.manifest.users):
        *history, target = [names[row - 1] for row in new.items[new.offsets[user] : new.offsets[user + 1]].tolist()]
        for places, exclude in ((plain, False), (masked, True)):
            (answer,) = recommender.recommend_all([history], 30, exclude_history=exclude)
            listed = [each.item for each in answer.recommendations if each.score is not None]
            places.append(1 + listed.index(target) if target in listed else 0)
    assert found.rank.tolist() == plain
    repeated = [n for n, place in enumerate(masked) if place == 0]  # a target in the history is masked there
    assert [rank for n, rank in enumerate(found.rank_masked) if n not in repeated] == [m for m in masked if m]
    assert 0 in plain, "a target that is new, and a history of new items alone"


def test_the_better_one_is_said_and_noted(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((world / "runs/one-u1/update.json").read_text())
    assert (said["from"], said["users"]) == ("one", 42)
    values = said["NDCG@10"]
    assert said["better"] == ("one-u1" if values["one-u1"] > values["one"] else "one")
    ranks = read_ranks(world / "runs/one-u1").rank
    assert values["one-u1"] == pytest.approx(np.where((ranks > 0) & (ranks <= 10), 1 / np.log2(1 + ranks), 0).mean())
    assert updated(world, "--resume", "--name", "one-u1") == 0, "of a finished update only the comparison is made again"
    out = capsys.readouterr().out
    assert "one-u1" in out
    assert json.loads((world / "runs/one-u1/update.json").read_text())["better"] == said["better"]


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (["--name", "one-u1"], "new", "use --resume"),
        ([], "nowhere", "nowhere"),
        ([], "longer", "give --max-length 6"),
        (["--set", "model.hidden=9"], "new", "keeps the system"),
        (["--alias", "champion"], "new", "give --register-as, too"),
        (["--register-as", "a/b"], "new", "--register-as 'a/b'"),
    ],
)
def test_what_cannot_be_updated_is_refused(
    world: Path, options: list[str], data: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert updated(world, *options, data=data) == 2
    assert message in capsys.readouterr().err


def test_data_that_share_nothing_are_other_data(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(world / "strange", {"a": ["x", "y", "z", "x"], "b": ["z", "y", "x", "y"]}, ["x", "y", "z"])
    assert updated(world, data="strange") == 2
    assert "this is other data" in capsys.readouterr().err


def test_the_better_one_is_registered(world: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.commands import update
    from trainer.tracking.address import Tracker
    from trainer.tracking.model_address import ModelAddress
    from trainer.tracking.registry import current, version_of_run

    shutil.copy(mlflow_store, world / "mlflow.db")
    uri = f"sqlite:///{world}/mlflow.db"
    better = json.loads((world / "runs/one-u1/update.json").read_text())["better"]
    again = ["--resume", "--name", "one-u1", "--register-as", "videos", "--alias", "champion", "--uri", uri]
    assert updated(world, *again) == 0
    assert current(uri, ModelAddress("videos", "champion")).run == better
    # whichever the other is: as if it were the better one, and as if the old one stayed so
    monkeypatch.setattr(update, "_compare", lambda *_: "one")
    assert updated(world, *again) == 0
    assert updated(world, *again) == 0
    assert current(uri, ModelAddress("videos", "champion")).run == "one"
    version = version_of_run(Tracker(uri, ""), "videos", "one")
    assert version is not None
    assert version.number <= 2, "the old one is registered once"
