"""Exports in MLflow's registry: a pyfunc that answers as the export does, and an alias that the service follows."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from models.errors import UserError
from retrieval import Recommender
from tests.helpers.exported import IDS, N_ITEMS, export_model
from tests.helpers.tracked_runs import write_run
from trainer.commands.model_source import ModelSource, add_model_argument, model_source
from trainer.commands.serve import _service
from trainer.tracking.address import Tracker, sqlite_uri
from trainer.tracking.model_address import check_alias, parse_address, registry_uri

MADE_ANEW = [f"w{row}" for row in range(1, N_ITEMS)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Tracker:
    """Two versions of `videos`: the second has other ids, and the alias names the first."""
    root = tmp_path_factory.mktemp("registry")
    shutil.copy(mlflow_store, root / "mlflow.db")
    where = Tracker(sqlite_uri(root / "mlflow.db"), "mealrec")
    from trainer.tracking.registry import register, set_alias

    for name, ids in (("one", IDS), ("two", MADE_ANEW)):
        run_dir, log = write_run(root / "runs", name)
        log.append("test", 1, 10, {"NDCG@10": 0.25})
        (run_dir / "test.json").write_text(json.dumps({"epoch": 1, "NDCG@10": 0.25}))
        export_model(root / name, ids=ids, provenance={"run": name, "data": "d"})
        version = register(run_dir, root / name, where, "videos")
        if name == "one":
            set_alias(where, version, "champion")
    return where


def source(registry: Tracker, cache: Path, address: str = "models:/videos@champion") -> ModelSource:
    return ModelSource(None, parse_address(address), registry.uri, cache)


def test_a_version_has_all_that_mlflow_shows_of_a_model(registry: Tracker) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    version = client.get_model_version("videos", "1")
    assert (version.tags["mealrec.run"], version.aliases) == ("one", ["champion"])
    assert "NDCG@10" in version.description
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["test/NDCG_at_10"] == 0.25
    run = client.get_run(version.run_id)
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["beauty"]


def test_plain_mlflow_gives_the_answers_of_the_export(registry: Tracker, tmp_path: Path) -> None:
    """In a process that knows neither MealRec nor its folder."""
    program = tmp_path / "plain.py"
    program.write_text(
        "import json, sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/videos@champion')\n"
        "asked = [{'history': ['v21', 'new', 'v28']}, {'history': ['nobody']}]\n"
        "print(json.dumps(model.predict(asked, params={'k': 4}).to_dict('records')))\n"
        "print(json.dumps([model.input_example.to_dict('records'), model.metadata.get_params_schema().to_dict()]))\n"
        "import retrieval; print(retrieval.__file__)\n"
        "try: model.predict(asked, params={'k': 0})\n"
        "except mlflow.MlflowException as error: print(error.get_http_status_code(), error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(program), registry.uri],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    answers, about, code, refused = done.stdout.splitlines()
    recommender = Recommender.load(Path(registry.uri.removeprefix("sqlite:///")).parent / "one")
    own = recommender.recommend_all([["v21", "new", "v28"], ["nobody"]], 4)
    assert json.loads(answers) == [
        {
            "items": [each.item for each in answer.recommendations],
            "titles": [each.title for each in answer.recommendations],
            "scores": [pytest.approx(each.score) for each in answer.recommendations],
            "note": answer.remarks,
        }
        for answer in own
    ]
    example, params = json.loads(about)
    assert example == [{"history": IDS[:3]}, {"history": IDS[:1]}]
    assert [each["name"] for each in params] == ["k", "exclude_history"]
    assert "/mlartifacts/" in code, "the code that the model brought along"
    assert refused.startswith("400 ")


def test_a_service_follows_the_alias(registry: Tracker, tmp_path: Path) -> None:
    from trainer.tracking.registry import Version, set_alias, version_of_run

    champion = source(registry, tmp_path)
    service = _service(champion, "exact", None, 1, None, 0.0)
    with TestClient(service.asgi) as client:
        assert client.get("/v1/model").json()["run"] == "one"
        first = champion.identity()()
        two = version_of_run(registry, "videos", "two")
        assert two == Version("videos", 2, "two")
        set_alias(registry, two, "champion")
        assert champion.identity()() not in (first, None)
        assert service.reload()
        assert client.get("/v1/item", params={"id": "w7"}).status_code == 200
        set_alias(registry, Version("videos", 1, "one"), "champion")  # a rollback
        assert champion.identity()() == first
        assert service.reload()
        assert client.get("/v1/item", params={"id": "v7"}).status_code == 200
    assert len([each for each in tmp_path.iterdir() if each.is_dir()]) == 2, "each version is copied once"


@pytest.mark.parametrize(
    ("address", "message"),
    [("models:/videos@nobody", "no model models:/videos@nobody in the registry"), ("models:/videos/9", "videos/9"),
     ("models:/films@champion", "films@champion")],
)  # fmt: skip
def test_what_the_registry_does_not_have(registry: Tracker, tmp_path: Path, address: str, message: str) -> None:
    missing = source(registry, tmp_path, address)
    with pytest.raises(UserError, match=message):
        missing.folder()
    assert missing.identity()() is None


def test_a_model_of_another_program_is_refused(
    registry: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    client = MlflowClient(registry.uri)
    made = client.create_logged_model(client.create_experiment("other", (tmp_path / "store").as_uri()), "other")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/MLmodel").write_text("flavors: {python_function: {artifacts: {export: {path: ../..}}}}\n")
    client.log_model_artifacts(made.model_id, str(tmp_path / "model"))
    client.create_registered_model("other")
    client.create_model_version("other", f"models:/{made.model_id}", model_id=made.model_id)
    with pytest.raises(UserError, match="holds no export of MealRec"):
        source(registry, tmp_path / "cache", "models:/other/1").folder()


def test_addresses() -> None:
    assert str(parse_address("models:/my videos@champion")) == "models:/my videos@champion"
    assert str(parse_address("models:/videos/12")) == "models:/videos/12"
    assert parse_address("models") is None
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    assert model_source(parser.parse_args(["--model", "a/b"]).model).path == Path.cwd() / "a/b"
    for wrong in ("models:/videos", "models:/videos/0", "models:/videos@", "models:/a/b@c"):
        with pytest.raises(UserError, match="write models:/NAME@ALIAS or"):
            parse_address(wrong)
    for wrong in ("v1", "latest", "", "a b"):
        with pytest.raises(UserError, match="--alias"):
            check_alias(wrong)


def test_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry_uri({"MLFLOW_TRACKING_URI": "http://h"}) == "http://h"
    with pytest.raises(UserError, match=r"There is no mlflow\.db"):
        registry_uri({})
    (tmp_path / "mlflow.db").touch()
    assert registry_uri({}) == sqlite_uri(tmp_path / "mlflow.db")
