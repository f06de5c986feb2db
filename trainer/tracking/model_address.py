"""How a model of MLflow's registry is named: models:/NAME@ALIAS or models:/NAME/VERSION. Needs no MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from trainer.tracking.address import sqlite_uri

SCHEME = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/:@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>[1-9]\d*))")


@dataclass(frozen=True)
class ModelAddress:
    """name: of the registered model. Either an alias, which may move to another version, or a version."""

    name: str
    alias: str = ""
    version: int = 0

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse_address(text: str) -> ModelAddress | None:
    """The address in `text`; None if it is a path. Raises UserError for an address that is neither form."""
    if not text.startswith(SCHEME):
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UserError(f"{text}: write {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION, such as {SCHEME}videos@champion")
    return ModelAddress(match["name"], match["alias"] or "", int(match["version"] or 0))


def check_name(name: str, what: str) -> None:
    """Raise UserError for a name that an address cannot hold; `what` is the option that gave it."""
    if not name.strip() or re.search(r"[/:@'\"]", name):
        raise UserError(f"{what} {name!r}: give a name without / : @ and quotes")


def check_alias(alias: str) -> None:
    """Raise UserError for an alias that MLflow refuses."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", alias) or re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE):
        raise UserError(f"--alias {alias!r}: give letters, digits, _ and -, such as champion; not v1 or latest")


def registry_uri(environment: Mapping[str, str] = os.environ) -> str:
    """Where the registry is: MLflow's own variables, else mlflow.db in this folder. Raises UserError without either."""
    named = environment.get("MLFLOW_REGISTRY_URI") or environment.get("MLFLOW_TRACKING_URI")
    here = Path("mlflow.db").absolute()
    if not named and not here.exists():
        raise UserError(
            f"where is MLflow's registry? There is no mlflow.db in {here.parent}; go to the folder that has it, or "
            "name the server in the variable MLFLOW_TRACKING_URI"
        )
    return named or sqlite_uri(here)
