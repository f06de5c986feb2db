"""What a program asks a recommender: among some items, without others, what is similar, and why."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import retrieval
from models.errors import UserError
from retrieval import Answer, Recommender
from retrieval.export import index_folder
from retrieval.index.build import build_index
from tests.helpers.exported import IDS, export_model
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module", params=["sasrec", "mealrec", "transition-knn"])
def recommender(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("model")
    export_model(folder / "model", request.param)
    return Recommender.load(str(folder / "model"))


def ids(answer: Answer) -> list[str]:
    return [each.item for each in answer.recommendations]


def test_among_and_exclude_leave_the_order_of_the_rest(recommender: Recommender) -> None:
    history = ["v7", "v14"]
    whole = recommender.recommend(history, 100)
    for among, exclude in ((IDS[1:30], ()), (None, IDS[:20]), ([*reversed(IDS[1:30]), "new"], [*IDS[5:9], "gone"])):
        answer = recommender.recommend(history, 100, among=among, exclude=exclude)
        allowed = {*IDS} if among is None else {*among}
        rest = [each for each in whole.recommendations if each.item in allowed and each.item not in exclude]
        assert ids(answer) == [each.item for each in rest]
        scores = [each.score for each in answer.recommendations]
        assert scores == pytest.approx([each.score for each in rest], rel=1e-5)
        assert ids(recommender.recommend(history, 3, among=among, exclude=exclude)) == ids(answer)[:3]
    answer = recommender.recommend(history, 5, among=["v7", "v21"], exclude=["v28"])
    assert (ids(answer), answer.note.partition(":")[0]) == (["v21"], "1 items, not 5")
    assert "of which 2 may be recommended, and 3 that were watched or excluded are left out" in answer.note
    assert ids(recommender.recommend(history, 5, among=["v7"], exclude_history=False)) == ["v7"]
    with pytest.raises(UserError, match="among holds no item that the model knows"):
        recommender.recommend(history, among=["new"])


def test_the_popular_items_obey_among_and_exclude(recommender: Recommender) -> None:
    (answer,) = recommender.recommend_all([["nobody"]], 2, exclude=["v21"], among=["v28", "v21", "v7", "v14"])
    assert ids(answer) == ["v14", "v7"], "most popular first"


def test_among_is_ranked_exactly_where_there_is_an_index(tmp_path: Path) -> None:
    export_model(tmp_path / "model")
    exact = Recommender.load(tmp_path / "model")
    index = build_index(exact.item_vectors.numpy(), "flat", checksum=exact.card.checksum, device="cpu")
    index.save(index_folder(tmp_path / "model", "flat"))
    by_index = Recommender.load(tmp_path / "model", index="flat")
    for asked in ({}, {"among": IDS[3:9]}, {"exclude": IDS[3:9]}):
        assert ids(by_index.recommend(["v7"], 9, **asked)) == ids(exact.recommend(["v7"], 9, **asked))


def test_similar_items_are_nearest_by_the_models_similarity(recommender: Recommender) -> None:
    if recommender.card.system == "transition-knn":
        with pytest.raises(UserError, match="transition-knn ranks without vectors, so it has no index and no similar"):
            recommender.similar("v35")
        return
    found = recommender.similar("v35", 4)
    vectors = recommender.item_vectors
    scores = (vectors @ vectors[5]).tolist()
    nearest = sorted((row for row in range(1, len(IDS) + 1) if row != 5), key=lambda row: -scores[row])
    assert [each.item for each in found] == [IDS[row - 1] for row in nearest[:4]]
    assert len(recommender.similar("v35", 1000)) == len(IDS) - 1
    with pytest.raises(UserError, match=r"does not know the item 'x'; known ids are v7, v14"):
        recommender.similar("x")
    with pytest.raises(UserError, match="0 similar items"):
        recommender.similar("v35", 0)


def test_an_influence_is_what_the_score_loses_without_the_item(recommender: Recommender) -> None:
    history = ["v21", "unknown", "v49", "v63"]
    (best,) = recommender.recommend(history, 1).recommendations
    assert best.score is not None
    influences = recommender.explain(history, best.item)
    assert [each.item for each in influences] == ["v21", "v49", "v63"]
    for influence in influences:
        rest = [item for item in history if item != influence.item]
        (without,) = recommender.recommend(rest, among=[best.item]).recommendations
        assert without.score is not None
        assert influence.effect == pytest.approx(best.score - without.score, abs=1e-4)
    assert [each.effect for each in recommender.explain(["v21"], "v49")] == [None]
    older = recommender.explain([f"v{7 * row}" for row in range(1, 9)], "v70")
    assert [each.effect for each in older[:3]] == [0, 0, 0], "the model reads five items"
    with pytest.raises(UserError, match="history 1"):
        recommender.explain(["unknown"], "v49")


@pytest.mark.parametrize("history", ["v7", [7], [["v7"]]])
def test_a_history_is_a_list_of_texts(recommender: Recommender, history: Any) -> None:
    with pytest.raises(UserError, match=r"a history is a list of ids, each a text, such as .*; not .*7"):
        recommender.recommend(history)


def test_threads_share_a_recommender(recommender: Recommender) -> None:
    histories = [[IDS[n % 59], IDS[3 * n % 59]] for n in range(16)]
    alone = [recommender.recommend(history, 5) for history in histories]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda history: recommender.recommend(history, 5), histories)] == alone


def test_it_loads_without_what_only_training_needs() -> None:
    heavy = ["ray", "mlflow", "polars", "deepspeed", "webdataset", "faiss", "trainer"]
    loaded = f"[name for name in {heavy} if name in sys.modules]"
    code = f"import json, sys; from retrieval import Recommender; print(json.dumps({loaded}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = retrieval.Nothing
