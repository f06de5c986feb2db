"""The limits of the service: token, rate; what needs neither."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from retrieval import Recommender
from retrieval.service.app import Service
from retrieval.service.guard import Guard, Limits
from retrieval.service.measures import Measures
from tests.helpers.exported import export_model

QUESTION = {"history": ["v7"], "k": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    export_model(folder)
    return folder


def test_without_the_token_nothing_is_answered_but_health(model: Path) -> None:
    service = Service(lambda: Recommender.load(model), limits=Limits(token="secret"))
    with TestClient(service.asgi) as client:
        for headers in ({}, {"authorization": "Bearer secre"}, {"authorization": "secret"}):
            refused = client.post("/v1/recommend", json=QUESTION, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer TOKEN" in refused.json()["error"]
        given = {"authorization": "Bearer secret"}
        assert client.post("/v1/recommend", json=QUESTION, headers=given).status_code == 200
        assert client.get("/openapi.json").status_code == 401
        assert [client.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200] * 3


def test_more_than_the_rate_is_told_to_come_again(model: Path) -> None:
    now = 0.0
    service = Service(lambda: Recommender.load(model))
    guard = Guard(service.asgi, Limits(rate=3), Measures(), clock=lambda: now)
    with TestClient(guard) as client:
        assert [client.post("/v1/recommend", json=QUESTION).status_code for _ in range(5)] == [200] * 3 + [429] * 2
        refused = client.post("/v1/recommend", json=QUESTION)
        assert (refused.headers["retry-after"], refused.json()["error"][:22]) == ("1", "more than 3 requests a")
        assert client.get("/health").status_code == 200
        now = 0.7
        assert [client.post("/v1/recommend", json=QUESTION).status_code for _ in range(3)] == [200] * 2 + [429]


def test_each_request_leaves_one_line(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(lambda: Recommender.load(model))
    with TestClient(service.asgi) as client, caplog.at_level(logging.INFO, "mealrec.service"):
        client.post("/v1/recommend", json=QUESTION)
        client.get("/v1/item", params={"id": "private"})
    lines = [record.message for record in caplog.records if record.name == "mealrec.service"]
    assert len(lines) == 2
    assert '"path": "/v1/recommend", "status": 200, "ms": ' in lines[0]
    assert '"path": "/v1/item", "status": 404' in lines[1]
    assert "private" not in lines[1]
