"""MLflow's registry of models: an export becomes a version of a registered model, and a version an export again.

Imports MLflow, which takes seconds: commands import this where they need it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import models
import retrieval
from models.errors import UserError
from retrieval.disk import disk_trouble
from retrieval.export import load_export
from retrieval.files import digest, locked
from retrieval.folders import whole_folder
from trainer.tracking import describe
from trainer.tracking.address import Tracker, credentials, sqlite_path
from trainer.tracking.model_address import ModelAddress
from trainer.tracking.publisher import Publisher
from trainer.tracking.state import read_state
from trainer.tracking.store import BUGS, make_store, reason

#: what the packages that a model brings along import; the index is only needed where the export has one
_PACKAGES = ("torch", "numpy", "pydantic", "pyarrow", "safetensors", "pandas")
_FAISS = ("faiss-cpu", "faiss-gpu")
_EXPORT = "export"
_TAG_RUN, _TAG_CHECKSUM, _TAG_DATA = "mealrec.run", "mealrec.checksum", "mealrec.data"


@dataclass(frozen=True)
class Version:
    """A version of a registered model. run: the name of the training run."""

    model: str
    number: int
    run: str


def register(run_dir: Path, export: Path, where: Tracker, model: str) -> Version:
    """Log the export of the run in `run_dir` as a pyfunc, and make it the next version of `model`.

    What MLflow does not have yet of the run itself is posted before, so that metrics, parameters and the dataset are
    those of the model. Raises UserError where the export is damaged, and, with the reason, where MLflow does not take
    it.
    """
    run_dir, loaded = run_dir.absolute(), load_export(export)
    card, example = loaded.card, list(loaded.items.ids[:3])
    with _registry(where) as client:
        with locked(run_dir / ".mlflow.lock"):
            publisher = Publisher(run_dir, where.uri, where.experiment, None)
            publisher.sync()
            publisher.finish("FINISHED")
        state = read_state(run_dir)
        os.environ["MLFLOW_EXPERIMENT_ID"] = state["experiment_id"]
        os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
        description = describe.description(run_dir, describe.read_config(run_dir))
        tags = {
            _TAG_RUN: run_dir.name,
            _TAG_CHECKSUM: card.checksum,
            _TAG_DATA: str(card.provenance.get("data", "")),
        }
        logged = Model.log(
            None, mlflow.pyfunc, name="model", run_id=state["run_id"], tags=tags,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")), artifacts={_EXPORT: str(export)},
            code_paths=[str(Path(str(each.__file__)).parent) for each in (models, retrieval)],
            signature=_signature(), input_example=(pd.DataFrame({"history": [example, example[:1]]}), {"k": 5}),
            pip_requirements=_requirements((export / "index").is_dir()),
        )  # fmt: skip
        _ensure_model(client, model)
        made = client.create_model_version(
            model, logged.model_uri, state["run_id"], tags, description=description, model_id=logged.model_id
        )
        return Version(model, int(made.version), run_dir.name)


def _ensure_model(client: MlflowClient, model: str) -> None:
    try:
        client.create_registered_model(model)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def set_alias(where: Tracker, found: Version, alias: str) -> None:
    """Let the alias name this version, and no other one of its model. Raises UserError."""
    with _registry(where) as client:
        client.set_registered_model_alias(found.model, alias, str(found.number))


def version_of_run(where: Tracker, model: str, run: str) -> Version | None:
    """The newest version of `model` that was made of a training run; None if there is none. Raises UserError."""
    with _registry(where) as client:
        found = client.search_model_versions(f"name = '{model}'")
        numbers = [int(each.version) for each in found if each.tags.get(_TAG_RUN) == run]
        return Version(model, max(numbers), run) if numbers else None


def current(uri: str, address: ModelAddress) -> Version:
    """The version that the address names now. Raises UserError: no such model, version or alias; no registry."""
    with _registry(Tracker(uri, "")) as client:
        found = _found(client, address)
        return Version(found.name, int(found.version), found.tags.get(_TAG_RUN, ""))


def fetched(uri: str, address: ModelAddress, cache: Path) -> Path:
    """The folder with the export of the version that the address names, copied into `cache` unless it is there.

    Only its files are read: no code that came with the model runs. Raises UserError as `current`, and where the version
    has no export.
    """
    with _registry(Tracker(uri, "")) as client:
        found = _found(client, address)
        # a registry that was made anew counts its versions from 1 again
        key = digest(f"{uri} {found.name} {found.version} {found.creation_timestamp} {found.source}")[:16]
        place = cache / f"{describe.api_name(found.name)}-{found.version}-{key}"
        with locked(cache / f".{place.name}.lock"):
            if not (place / "model.json").exists():
                _copy(found, place, address)
        return place


def _copy(found: Any, place: Path, address: ModelAddress) -> None:
    source = f"models:/{found.name}/{found.version}"
    with whole_folder(place) as new:
        copy = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(new / "all")))
        flavor = Model.load(str(copy)).flavors.get("python_function", {})
        inside = flavor.get("artifacts", {}).get(_EXPORT, {}).get("path", "")
        export = copy / inside
        if not inside or copy.resolve() not in export.resolve().parents or not (export / "model.json").is_file():
            raise UserError(f"{address} holds no export of MealRec; `mealrec register` makes such a model")
        for each in export.iterdir():
            each.rename(new / each.name)
        shutil.rmtree(new / "all")


def _found(client: MlflowClient, address: ModelAddress) -> Any:
    try:
        if address.alias:
            return client.get_model_version_by_alias(address.name, address.alias)
        return client.get_model_version(address.name, str(address.version))
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"there is no model {address} in the registry; `mealrec register` makes one") from None
        raise


@contextmanager
def _registry(where: Tracker) -> Iterator[MlflowClient]:
    """A client of the registry at `where`; what MLflow raises becomes a UserError that names the place."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    plain, secrets = credentials(where.uri)
    before = os.environ.copy()
    try:
        make_store(where.uri)
        os.environ.update(secrets)
        mlflow.set_registry_uri(os.environ.get("MLFLOW_REGISTRY_URI") or plain)
        mlflow.set_tracking_uri(plain)
        yield MlflowClient()
    except UserError:
        raise
    except Exception as error:  # whatever mlflow, its stores and its HTTP client raise
        if type(error) in BUGS:
            raise
        store = sqlite_path(where.uri)
        full = disk_trouble(error, store.parent) if store is not None else None
        raise UserError(full or f"MLflow at {where.shown} fails: {reason(error, where.uri)}") from error
    finally:  # MLflow keeps its addresses in the environment, too
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        os.environ.clear()
        os.environ.update(before)


def _signature() -> ModelSignature:
    ids = Array(DataType.string)
    return ModelSignature(
        inputs=Schema([ColSpec(ids, "history")]),
        outputs=Schema(
            [ColSpec(ids, "items"), ColSpec(ids, "titles"), ColSpec(Array(DataType.double), "scores"),
             ColSpec(DataType.string, "note")]
        ),
        params=ParamSchema(
            [ParamSpec("k", DataType.long, 20), ParamSpec("exclude_history", DataType.boolean, True)]
        ),
    )  # fmt: skip


def _requirements(indexed: bool) -> list[str]:
    """Packages with their versions here, as pip takes them: "2.13.0+cpu" is 2.13.0 there."""
    found = {package: _version(package) for package in (*_PACKAGES, *(_FAISS if indexed else ()))}
    return [f"{package}=={number}" for package, number in found.items() if number]


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:  # of FAISS' two packages one is installed
        return ""
