"""The service in this process: what it answers, and what it says to a question that is wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.errors import UserError
from retrieval import Recommender
from retrieval.export import index_folder
from retrieval.index.build import build_index
from retrieval.service.app import Service
from retrieval.service.guard import Limits
from tests.helpers.exported import IDS, export_model


def known_users(user: str) -> Sequence[str]:
    if user != "ann":
        raise UserError(f"no user {user!r}")
    return ["v7", "v14"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    export_model(folder)
    made = Recommender.load(folder)
    index = build_index(made.item_vectors.numpy(), "flat", checksum=made.card.checksum, device="cpu")
    index.save(index_folder(folder, "flat"))
    return folder


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    service = Service(lambda: Recommender.load(model, index="flat"), known_users, Limits(body=20_000))
    with TestClient(service.asgi, raise_server_exceptions=False) as made:
        yield made


def items(answer: dict[str, Any]) -> list[str]:
    return [each["item"] for each in answer["recommendations"]]


def told(answer: Any) -> list[str] | str:
    """All but scores, whose last bits depend on the batch."""
    return items(answer.json()) if answer.status_code == 200 else str(answer.json())


def test_it_answers_as_the_recommender(client: TestClient, model: Path) -> None:
    recommender = Recommender.load(model)
    for asked in ({"k": 5}, {"k": 3, "exclude": IDS[:30]}, {"among": IDS[4:9]}, {"exclude_history": False}):
        answer = client.post("/v1/recommend", json={"history": ["v21", "new", "v28"], **asked})
        own = recommender.recommend(["v21", "new", "v28"], **asked)
        assert answer.status_code == 200
        assert items(answer.json()) == [each.item for each in own.recommendations]
        assert answer.json()["unknown"] == ["new"]
        assert answer.json()["model"] == recommender.card.checksum
    by_user = client.post("/v1/recommend", json={"user": "ann", "k": 4}).json()
    assert items(by_user) == [each.item for each in recommender.recommend(["v7", "v14"], 4).recommendations]
    similar = client.get("/v1/similar", params={"item": "v7", "k": 2}).json()["similar"]
    assert [each["item"] for each in similar] == [each.item for each in recommender.similar("v7", 2)]
    why = client.post("/v1/explain", json={"history": ["v7", "v14"], "item": "v70"}).json()["influences"]
    assert [each["effect"] for each in why] == [each.effect for each in recommender.explain(["v7", "v14"], "v70")]
    popular = client.post("/v1/recommend", json={"history": ["new"], "k": 1, "popular_instead": True}).json()
    assert (items(popular), popular["recommendations"][0]["score"]) == (["v21"], None)


def test_items_are_found_by_id_and_title(client: TestClient) -> None:
    assert client.get("/v1/item", params={"id": "v28"}).json() == {"item": "v28", "title": "title 4"}
    found = client.get("/v1/items", params={"text": "TITLE 4"}).json()["items"]
    assert [each["item"] for each in found] == ["v28", *(f"v{7 * row}" for row in range(40, 50, 2))]
    assert [each["item"] for each in client.get("/v1/items", params={"text": "v7", "most": 2}).json()["items"]] == [
        "v7", "v70"
    ]  # fmt: skip
    about = client.get("/v1/model").json()
    assert (about["system"], about["items"], about["knows_users"]) == ("sasrec", 59, True)


def test_questions_that_wait_are_answered_together_and_each_gets_its_own_answer(client: TestClient) -> None:
    bodies = [{"history": [IDS[n % 59]], "k": 2 + n % 3} for n in range(40)] + [{"history": ["nobody"]}] * 5
    alone = [client.post("/v1/recommend", json=body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        together = [*pool.map(lambda body: client.post("/v1/recommend", json=body), bodies)]
    assert [told(each) for each in together] == [told(each) for each in alone]
    assert [each.status_code for each in together] == [200] * 40 + [422] * 5
    sizes = [line for line in client.get("/metrics").text.splitlines() if line.startswith("mealrec_batch_size_")]
    count, total = (float(next(line for line in sizes if part in line).split()[1]) for part in ("_count", "_sum"))
    assert total > count, "no two questions were answered together"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "the request: give either history, a list of item ids, or user"),
        ({"history": ["v7"], "user": "ann"}, 422, "give either history"),
        ({"history": []}, 422, r"history 1 \(empty\) holds no item that the model knows"),
        ({"history": ["x y", "-dQw"]}, 422, r"history 1 \('x y', '-dQw'\) holds no item .* such as v7"),
        ({"history": "v7"}, 422, "history: Input should be a valid list"),
        ({"history": [7]}, 422, "history: Input should be a valid string"),
        ({"history": ["v7"], "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"history": ["v7"], "k": 1001}, 422, "k: Input should be less than or equal to 1000"),
        ({"history": ["v7"], "k": "5"}, 422, "k: Input should be a valid integer"),
        ({"history": ["v7"], "size": 3}, 422, "size: there is no such field"),
        ({"history": ["v7"] * 1001}, 422, "history: List should have at most 1000 items"),
        ({"history": ["v7"], "among": ["new"]}, 422, "among holds no item that the model knows"),
        ({"user": "bob"}, 422, "this service knows no user 'bob'; give history"),
        ({"history": ["v7"], "k": 60}, 422, "k: 60 items were asked for, and the catalogue has 59"),
        ([1], 422, "the request: "),
    ],
)
def test_a_wrong_question_gets_a_sentence(client: TestClient, body: Any, status: int, sentence: str) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert re.search(sentence, answer.json()["error"])


def test_what_is_not_there_is_said(client: TestClient) -> None:
    for path, params in (("/v1/item", {"id": "x"}), ("/v1/similar", {"item": "x"})):
        answer = client.get(path, params=params)
        assert answer.status_code == 404
        assert "the model does not know the item 'x'" in answer.json()["error"]
    assert client.post("/v1/explain", json={"history": ["v7"], "item": "x"}).status_code == 404
    assert client.get("/nothing").json() == {"error": "there is nothing at /nothing; see /openapi.json"}
    wrong = client.get("/v1/recommend")
    assert (wrong.status_code, wrong.json()) == (405, {"error": "/v1/recommend is not for GET; see /openapi.json"})
    assert client.get("/v1/similar", params={"item": "v7", "k": 60}).status_code == 422
    assert client.get("/v1/similar", params={"item": "v7", "k": "many"}).json()["error"].startswith("k: ")


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b'{"history": ["v7"]', 422, "the body is not JSON"),
        (b'{"history": ["v7"], "k": NaN}', 422, "k: "),
        (b"[" * 19_000, 422, ""),
        (b"\xff\xfe", 422, ""),
        (b'{"history": ["' + b"x" * 30_000 + b'"]}', 413, "at most 20,000 bytes"),
    ],
)
def test_a_body_that_cannot_be_read(client: TestClient, content: bytes, status: int, sentence: str) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/recommend", content=content, headers=headers)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    in_pieces = (content[start : start + 4096] for start in range(0, len(content), 4096))  # no Content-Length
    assert client.post("/v1/recommend", content=in_pieces, headers=headers).status_code == answer.status_code


def test_a_reload_changes_the_model_and_a_failed_one_changes_nothing(tmp_path: Path) -> None:
    export_model(tmp_path / "a")
    export_model(tmp_path / "b", ids=[f"w{n}" for n in range(59)])
    place = tmp_path / "a"
    service = Service(lambda: Recommender.load(place))
    with TestClient(service.asgi) as client:
        stop, statuses = threading.Event(), list[int]()

        def ask() -> None:
            while not stop.is_set():
                statuses.append(client.post("/v1/recommend", json={"history": ["v7", "w1"], "k": 3}).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert client.get("/v1/item", params={"id": "w1"}).status_code == 404
            place = tmp_path / "b"
            service.reload()
            assert client.get("/v1/item", params={"id": "w1"}).status_code == 200
            place = tmp_path / "none"
            service.reload()
            assert client.get("/v1/item", params={"id": "w1"}).status_code == 200
            assert "none" in client.get("/v1/model").json()["trouble"]
        finally:
            stop.set()
            asking.join()
    assert {*statuses} == {200}
    text = client.get("/metrics").text
    assert 'mealrec_reloads_total{outcome="done"} 1.0' in text
    assert 'mealrec_reloads_total{outcome="failed"} 1.0' in text


def test_the_schema_and_the_measures(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {*schema["paths"]} >= {"/v1/recommend", "/v1/explain", "/v1/similar", "/v1/item", "/v1/items", "/v1/model"}
    assert client.get("/health").text == "ok\n"
    assert client.get("/ready").status_code == 200
    for n in range(300):
        client.get(f"/made/up/{n}")
    text = client.get("/metrics").text
    assert 'mealrec_requests_total{path="other",status="404"}' in text
    assert "/made/up" not in text
    assert 'mealrec_request_seconds_bucket{le="0.001",path="/v1/recommend"}' in text
    (recall,) = [line for line in text.splitlines() if line.startswith("mealrec_index_recall ")]
    assert float(recall.split()[1]) == 1.0, "flat finds all"
