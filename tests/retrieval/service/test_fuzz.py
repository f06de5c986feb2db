"""Whatever is sent to an endpoint gets an answer of the schema, or a 4xx with a sentence. What is sent is made from
`/openapi.json`: values that it allows, values that it does not, and `jsonschema` says which of both a request is."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from retrieval import Recommender
from retrieval.service.app import Service
from tests.helpers.exported import IDS, export_model
from tests.helpers.listening import listening

ENDPOINTS = [
    ("post", "/v1/recommend"), ("post", "/v1/explain"), ("post", "/v1/influences"), ("get", "/v1/similar"),
    ("get", "/v1/item"), ("get", "/v1/items"), ("get", "/v1/thumbnail"), ("get", "/v1/model"),
]  # fmt: skip
SPEED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_NASTY = ["", " ", "-dQw", "--k", " v7", "v7 ", "a b", "v7\n", "\0", "\ud800", "../../etc/passwd", "x" * 300, "é", "7"]
_STRANGE = [None, True, -1, 10**30, 0.5, math.nan, math.inf, -math.inf, [], {}, [[]], "5", ["v7", None], {"v7": 1}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder: Path = tmp_path_factory.mktemp("fuzz") / "model"
    export_model(folder)
    return Service(lambda: Recommender.load(folder))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.asgi, raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def schema(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(IDS) | st.sampled_from(_NASTY) | st.text(max_size=12)


def strange() -> st.SearchStrategy[Any]:
    return st.sampled_from(_STRANGE) | texts() | st.lists(texts(), max_size=3) | st.integers() | st.floats()


def allowed(schema: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly values that a part of the schema allows."""
    if "$ref" in schema:
        return allowed(whole["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], whole)
    if "anyOf" in schema:
        return st.one_of([allowed(each, whole) for each in schema["anyOf"]])
    if schema["type"] == "array":
        return st.lists(allowed(schema["items"], whole), max_size=4)
    if schema["type"] == "object":
        return st.fixed_dictionaries({}, optional={k: allowed(v, whole) for k, v in schema["properties"].items()})
    simple: dict[str, st.SearchStrategy[Any]] = {
        "string": texts(), "boolean": st.booleans(), "null": st.none(),
        "integer": st.integers(schema.get("minimum", -5), schema.get("maximum", 5)) | st.sampled_from([1, 20, 59, 60]),
    }  # fmt: skip
    return simple[schema["type"]]


def sent(schema: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A body: of the schema, or with a field of a strange value, or with one that it does not know, or anything."""
    spoilt = st.dictionaries(st.sampled_from([*schema["properties"], "other"]) | texts(), strange(), max_size=2)
    right = allowed(schema, whole)
    return right | st.builds(lambda body, more: {**body, **more}, right, spoilt) | strange()


def checked(answer: Any, refused: bool) -> None:
    """It is no 5xx, and an error is a sentence of one line; where the schema refuses the request, it is 422."""
    assert answer.status_code in (200, 204, 404, 422), (answer.status_code, answer.text)
    if answer.status_code >= 400:
        assert list(answer.json()) == ["error"]
        sentence = answer.json()["error"]
        assert 10 < len(sentence) <= 500
        assert sentence.isprintable()
        assert "Traceback" not in sentence
    assert not refused or answer.status_code == 422, answer.text


def test_every_endpoint_is_tried(schema: dict[str, Any]) -> None:
    assert {(verb, path) for path, verbs in schema["paths"].items() for verb in verbs} == {*ENDPOINTS}


@pytest.mark.parametrize("path", [path for verb, path in ENDPOINTS if verb == "post"])
@SPEED
@given(data=st.data())
def test_bodies(client: TestClient, schema: dict[str, Any], path: str, data: st.DataObject) -> None:
    reference = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    whole = {**schema, "$ref": reference}
    body = data.draw(sent(schema["components"]["schemas"][reference.rsplit("/", 1)[1]], schema))
    answer = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    checked(answer, not Draft202012Validator(whole).is_valid(body))


@pytest.mark.parametrize("path", [path for verb, path in ENDPOINTS if verb == "get"])
@SPEED
@given(data=st.data())
def test_parameters(client: TestClient, schema: dict[str, Any], path: str, data: st.DataObject) -> None:
    known = {each["name"]: each for each in schema["paths"][path]["get"].get("parameters", [])}
    right = st.fixed_dictionaries({}, optional={k: allowed(v["schema"], schema) for k, v in known.items()})
    more = st.dictionaries(st.sampled_from([*known, "other"]), strange(), max_size=1)
    asked = {name: str(value) for name, value in {**data.draw(right), **data.draw(more)}.items()}
    assume(all(each.isprintable() for each in asked.values()))  # an address holds Unicode alone
    missing = any(each["required"] and name not in asked for name, each in known.items())
    checked(client.get(path, params=asked), missing or not {*asked} <= {*known})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"\xff\xfe", b"[" * 100_000, b'{"history": ["v7"', b'{"history": ["v7"], "k": 1e999}', b"NaN",
        b'{"history": ["v7"], "k": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}', b"k=1&history=v7", b"\0" * 100,
        b'{"' + b"k" * 100_000 + b'": 1}', json.dumps({"history": ["a\nb" * 80] * 1000}).encode(),
        json.dumps({"history": ["v7"], "k": 1000}).encode(),
    ],
    ids=range(14),
)  # fmt: skip
def test_bodies_that_are_hard_to_read(client: TestClient, content: bytes) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"):
        checked(client.post("/v1/recommend", content=content, headers={"content-type": kind}), False)


def test_ten_megabytes_are_refused_by_a_real_server_which_goes_on(service: Service) -> None:
    body = json.dumps({"history": ["v" * 200] * 50_000}).encode()
    assert len(body) > 10_000_000
    with listening(service.asgi) as url:
        for pieces in (False, True):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
            started = time.monotonic()
            content = (body[at : at + 65_536] for at in range(0, len(body), 65_536)) if pieces else body
            # refused before all of it was sent; the answer is there
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", "/v1/recommend", content, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (
                413, {"error": "a request holds at most 1,048,576 bytes"}
            )  # fmt: skip
            assert time.monotonic() - started < 10
            connection.close()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/v1/item?id=v7")
        assert connection.getresponse().status == 200
