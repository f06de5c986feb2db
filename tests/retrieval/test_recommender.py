"""From an exported model to recommendations: real models of the registry, untrained, on a few items."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from models.contract import Batch
from models.errors import UserError
from retrieval.exact import Histories, exact_topk, for_similarity
from retrieval.export import index_folder, load_export, write_export
from retrieval.index.build import build_index
from retrieval.recommender import Recommender
from tests.helpers.exported import IDS, MAX_LENGTH, N_ITEMS, export_model, make_model
from trainer.commands import index as index_command
from trainer.commands import recommend as recommend_command


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    export_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("system", ["sasrec", "tedrec", "mealrec"])
def test_an_exported_model_ranks_as_the_model_itself(tmp_path: Path, system: str) -> None:
    model = export_model(tmp_path / "model", system)
    rows = [[3, 9, 9, 20], [1], [8, 7, 6, 5, 4, 3, 2]]
    recent = [row[-MAX_LENGTH:] for row in rows]
    batch = Batch(
        user=torch.zeros(3, dtype=torch.int64),
        history=torch.tensor([row + [0] * (MAX_LENGTH - len(row)) for row in recent]),
        length=torch.tensor([len(row) for row in recent]),
        target=torch.zeros(3, dtype=torch.int64),
        key=torch.zeros(3, dtype=torch.int64),
        behaviours=torch.zeros(3, MAX_LENGTH, dtype=torch.uint8),
    )
    with torch.no_grad():
        users = for_similarity(model.user_vectors(batch), model.similarity)
        items = for_similarity(model.item_vectors(), model.similarity)
    scores, ids = exact_topk(users, items, 8, Histories.of(rows))
    answers = Recommender.load(tmp_path / "model").recommend_all([[IDS[r - 1] for r in row] for row in rows], 8)
    assert [[r.item for r in a.recommendations] for a in answers] == [[IDS[i - 1] for i in row] for row in ids.tolist()]
    assert [r.score for r in answers[0].recommendations] == pytest.approx(scores[0].tolist(), rel=1e-5)


def test_unknown_ids_are_reported_and_history_is_excluded(model_dir: Path) -> None:
    recommender = Recommender.load(model_dir)
    answer = recommender.recommend(["nope", "v7", "v14", "v7", "who"], k=1000)
    clean = recommender.recommend(["v7", "v14", "v7"], k=1000)
    assert answer.unknown == ["nope", "who"]
    assert answer.recommendations == clean.recommendations
    assert {r.item for r in answer.recommendations} == set(IDS) - {"v7", "v14"}
    assert {r.item: r.title for r in answer.recommendations}["v28"] == "title 4"
    assert {r.item: r.title for r in answer.recommendations}["v21"] is None
    kept = recommender.recommend(["v7", "v14"], k=1000, exclude_history=False)
    assert {r.item for r in kept.recommendations} == set(IDS)


def test_items_older_than_the_models_memory_are_excluded_too(model_dir: Path) -> None:
    history = IDS[:20]
    answer = Recommender.load(model_dir).recommend(history, k=1000)
    assert {r.item for r in answer.recommendations} == set(IDS[20:])


def test_a_history_without_known_items_is_refused(model_dir: Path) -> None:
    recommender = Recommender.load(model_dir)
    with pytest.raises(UserError, match=r"history 2 \('a', 'b'\) holds no item.*such as v7, v14"):
        recommender.recommend_all([["v7"], ["a", "b"]], k=3, popular_instead=False)
    with pytest.raises(UserError, match=r"history 1 \(empty\)"):
        recommender.recommend([], k=3)
    with pytest.raises(UserError, match="at least 1"):
        recommender.recommend(["v7"], k=0)
    assert recommender.recommend_all([], k=3) == []


def test_a_bad_history_gets_the_popular_items_if_asked(model_dir: Path) -> None:
    recommender = Recommender.load(model_dir)
    good, unknown, empty = recommender.recommend_all([["v7"], ["a", "b"], []], k=4)
    assert recommender.recommend(["v7"], k=4) == good
    assert [r.item for r in unknown.recommendations] == ["v21", "v14", "v7", "v28"], "most popular first"
    assert {r.score for r in unknown.recommendations} == {None}
    assert unknown.recommendations == empty.recommendations
    assert unknown.remarks == (
        "ignored, because the model does not know them: 'a', 'b'; "
        "popular items, because the history holds no item that the model knows"
    )
    assert empty.remarks == empty.note
    assert good.remarks == ""
    (every,) = recommender.recommend_all([["a"]], k=100)
    assert every.note.endswith("; 59 items, not 100: the catalogue has 59")


def test_an_index_of_another_size_than_the_catalogue_is_refused(model_dir: Path) -> None:
    """Its checksum is that of the model, and it is whole; without the check its ids would name no items."""
    vectors = np.concatenate([Recommender.load(model_dir).item_vectors.numpy()] * 2)
    checksum = load_export(model_dir).card.checksum
    build_index(vectors, "flat", checksum=checksum, device="cpu").save(index_folder(model_dir, "flat"))
    with pytest.raises(UserError, match=r"index/flat does not hold the items of the model"):
        Recommender.load(model_dir, index="flat")


def test_an_answer_does_not_depend_on_its_batch(model_dir: Path) -> None:
    recommender = Recommender.load(model_dir)
    histories = [[IDS[n % 59], IDS[(3 * n) % 59]] for n in range(300)]
    together = recommender.recommend_all(histories, 5)
    for n in (0, 255, 256, 299):
        alone = recommender.recommend(histories[n], 5)
        assert [r.item for r in alone.recommendations] == [r.item for r in together[n].recommendations]


@pytest.mark.parametrize("index", ["exact", "flat", "ivf", "hnsw"])
def test_a_list_that_is_short_says_why(model_dir: Path, index: str) -> None:
    if index != "exact":
        run_command(index_command, "--model", str(model_dir), "--kind", index, "--device", "cpu")
    recommender = Recommender.load(model_dir, index=index)
    whole, none, rest = recommender.recommend_all([IDS[:4], IDS, IDS[:49]], k=20)
    assert (len(whole.recommendations), whole.note) == (20, "")
    assert (none.recommendations, none.note) == (
        [], "0 items, not 20: the catalogue has 59, and 59 that were watched or excluded are left out"
    )  # fmt: skip
    assert {r.item for r in rest.recommendations} == set(IDS[49:])
    assert rest.note == "10 items, not 20: the catalogue has 59, and 49 that were watched or excluded are left out"
    bounded = recommender.recommend(IDS[:2], k=10**12, exclude_history=False)
    assert {r.item for r in bounded.recommendations} == set(IDS)
    assert bounded.note == "59 items, not 1,000,000,000,000: the catalogue has 59"


def run_command(module: object, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return int(module.run(parser.parse_args(arguments)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_index_then_recommend_by_it(model_dir: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="mealrec index"):
        run_command(recommend_command, "--model", str(model_dir), "--history", "v7", "--index", kind)
    assert run_command(index_command, "--model", str(model_dir), "--kind", kind, "--device", "cpu") == 0
    report = capsys.readouterr().out
    assert kind in report
    assert "recall@10 1.0000  recall@20 1.0000" in report  # 59 items: even ivf (one list) and hnsw find all
    exact, by_index = (
        Recommender.load(model_dir, index=choice).recommend_all([["v7", "v70"], ["v21"]], 10)
        for choice in ("exact", kind)
    )
    for a, b in zip(exact, by_index, strict=True):
        assert [r.item for r in a.recommendations] == [r.item for r in b.recommendations]
    assert kind in Recommender.load(model_dir, index=kind).description


def test_an_index_in_shards_answers_as_exact_ranking_does(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(index_command, "--model", str(model_dir), "--kind", "flat", "--shards", "4", "--device", "cpu")
    said = capsys.readouterr().out
    assert "4 shards: flat on cpu, 14 items" in said
    assert "recall@20 1.0000" in said
    exact, sharded = (Recommender.load(model_dir, index=index) for index in ("exact", "flat"))
    for k in (5, 50):
        answers = [each.recommend(IDS[:9], k=k).recommendations for each in (exact, sharded)]
        assert [r.item for r in answers[0]] == [r.item for r in answers[1]]
    with pytest.raises(UserError, match="59 items cannot be in 60 shards"):
        run_command(index_command, "--model", str(model_dir), "--kind", "flat", "--shards", "60")
    assert Recommender.load(model_dir, index="flat").description == sharded.description, "as it was"


def test_an_index_that_misses_much_is_warned_about(
    model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.index.kmeans.TRAINING_POINTS", 3)  # 19 lists of 59 items
    run_command(index_command, "--model", str(model_dir), "--kind", "ivf", "--nprobe", "1", "--device", "cpu")
    assert "warning: recall@20 is below 0.95" in (printed := capsys.readouterr()).err
    assert "other options (--nprobe, --lists), as another kind, or as flat" in printed.err
    for index in ("exact", "ivf"):
        answer = Recommender.load(model_dir, index=index).recommend(IDS[:9], k=50)
        assert {r.item for r in answer.recommendations} == set(IDS[9:]), "whole all the same"


def test_a_recall_that_cannot_be_reached_is_told(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(index_command, "--model", str(model_dir), "--kind", "ivfpq", "--bytes", "1", "--rescore", "1",
                "--recall", "0.999")  # fmt: skip
    said = capsys.readouterr().err
    assert "recall@20 0.999 was asked for, and ivfpq finds no more than 0." in said
    assert "--bytes" in said


def test_a_mistake_in_an_option_or_a_kind_is_refused_by_name(model_dir: Path) -> None:
    for arguments, says in (
        (["--kind", "ifv"], "unknown index 'ifv': did you mean 'ivf'"),
        (["--kind", "flat", "--nprobe", "3"], "flat has no option nprobe"),
        (["--kind", "ivf", "--nprobe", "few"], "index ivf: nprobe"),
        (["--kind", "ivf", "--recall", "99"], "--recall 99.0: it is a share"),
        (["--kind", "ivf", "--recall", "0.9", "--nprobe", "1"], "two ways to say how widely ivf searches"),
    ):
        with pytest.raises(UserError, match=says):
            run_command(index_command, "--model", str(model_dir), *arguments)
    with pytest.raises(UserError, match=r"unknown index '\.\./flat'"):
        run_command(recommend_command, "--model", str(model_dir), "--history", "v7", "--index", "../flat")


def test_an_index_of_another_export_is_refused(model_dir: Path, tmp_path: Path) -> None:
    run_command(index_command, "--model", str(model_dir), "--kind", "flat", "--device", "cpu")
    export_model(tmp_path / "other", "tedrec")
    index_folder(tmp_path / "other", "flat").parent.mkdir()
    index_folder(model_dir, "flat").rename(index_folder(tmp_path / "other", "flat"))
    with pytest.raises(UserError, match="another model"):
        Recommender.load(tmp_path / "other", index="flat")


def test_weights_that_do_not_fit_this_version_are_refused(tmp_path: Path) -> None:
    model, _, _ = make_model("sasrec")
    shared = {
        "system": "sasrec",
        "similarity": model.similarity,
        "max_length": MAX_LENGTH,
        "seed": 3,
        "item_vectors": torch.ones(N_ITEMS, 4),
        "item_ids": IDS,
        "titles": [None] * len(IDS),
        "train_counts": [0] * len(IDS),
    }
    weights = {**model.state_dict(), "surplus": torch.ones(1)}
    write_export(tmp_path / "a", options={}, inference="default", weights=weights, **shared)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"do not fit this version of sasrec.*surplus"):
        Recommender.load(tmp_path / "a")
    write_export(
        tmp_path / "b", options={}, inference="magic", weights=model.state_dict(), **shared  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(UserError, match="inference 'magic'"):
        Recommender.load(tmp_path / "b")


def test_options_of_an_earlier_version_are_refused_with_what_to_do(model_dir: Path) -> None:
    card = model_dir / "model.json"
    card.write_text(card.read_text().replace('"options": {}', '"options": {"width": 8}'))
    with pytest.raises(UserError, match=r"do not fit this version.*\n.*model\.width.*\n.*train and export again"):
        Recommender.load(model_dir)
