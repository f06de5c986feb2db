"""Where a command gets an exported model from: a folder, or MLflow's registry."""

from __future__ import annotations

import argparse
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from retrieval.service.watched import POLL_S, Identity, of_file
from trainer.commands.tracker import prepare_mlflow
from trainer.data.storage import default_cache
from trainer.local_path import local_path
from trainer.tracking.model_address import ModelAddress, parse_address, registry_uri

_REGISTRY_POLL_S = 10.0


@dataclass(frozen=True)
class ModelSource:
    """path: the folder of an export; or address: of a model in the registry at uri, copied into cache.

    Raises UserError in every method: no such model, or no registry.
    """

    path: Path | None
    address: ModelAddress | None = None
    uri: str = ""
    cache: Path = Path()

    def folder(self) -> Path:
        """The folder of the export that is there now."""
        if self.address is None:
            assert self.path is not None
            return self.path
        prepare_mlflow()
        from trainer.tracking.registry import fetched

        return fetched(self.uri, self.address, self.cache)

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at whether another model is there."""
        return POLL_S if self.address is None else _REGISTRY_POLL_S

    def identity(self) -> Identity:
        """What tells the model that is there now from another one."""
        if self.address is None:
            assert self.path is not None
            return of_file(self.path / "model.json")
        return self._version

    def _version(self) -> Hashable | None:
        from trainer.tracking.registry import current

        assert self.address is not None
        try:
            return current(self.uri, self.address)
        except UserError:
            return None  # a registry that does not answer, or an alias that is gone, changes nothing


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """--model."""
    parser.add_argument("--model", type=_place, required=True, metavar="DIR",
                        help="made by `mealrec export`; or models:/NAME@ALIAS, see `mealrec register`")  # fmt: skip


def model_source(place: Path | ModelAddress) -> ModelSource:
    """The source that --model names; a relative path is of the current folder. Raises UserError without a registry."""
    if isinstance(place, ModelAddress):
        return ModelSource(None, place, registry_uri(), default_cache() / "models")
    return ModelSource(Path.cwd() / place)


def _place(text: str) -> Path | ModelAddress:
    try:
        return parse_address(text) or local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
