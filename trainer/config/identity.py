"""What a run is: noted in its checkpoints and reports, and compared whenever the run is opened. No torch is loaded."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError
from trainer.config.schema import RunConfig
from trainer.data.format.manifest import Manifest
from trainer.data.format.version import git_revision, program_version
from trainer.text_files import read_yaml
from trainer.tracking.describe import flat

#: results may differ between versions of these
_PACKAGES = ("torch", "numpy", "deepspeed")
_SHOWN = 3


def identity(config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    """JSON values: checksums of the configuration, of the evaluation that chooses the best epoch, of the data's files,
    of its manifest as a whole; and the versions of the program and its libraries."""
    return {
        "config": config.fingerprint(),
        "evaluation": config.eval.fingerprint(manifest.items, manifest.users),
        "data": manifest.fingerprint,
        "manifest": manifest.whole_fingerprint,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of this program (with its git revision), of Python, and of the libraries that results depend on."""
    found = {"mealrec": program_version(), "revision": git_revision() or "unknown", "python": platform.python_version()}
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class EarlierVersionError(UserError):
    """A run whose config.yaml lacks settings that came later, and so does not say what the run did."""


def check_saved(noted: Mapping[str, Any], config: RunConfig, path: Path, changed: str) -> None:
    """`check_configuration` for a configuration that was read from the config.yaml at `path`, in its run's folder.

    changed: says since when the file has changed, and what to do.
    Raises EarlierVersionError where the file lacks settings: a run says all that it has, so another version wrote it.
    """
    try:
        check_configuration(noted, config, str(path.parent), f"{path} has changed {changed}")
    except UserError:
        said = {key for key, _ in flat(read_yaml(path), ".")}
        missing = [key for key, _ in flat(config.model_dump(mode="json"), ".") if key not in said]
        if not missing:
            raise
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise EarlierVersionError(
            f"an earlier version of MealRec wrote {path}: it does not say {', '.join(missing[:_SHOWN])}{more}; use the "
            "run with that version, or train it again"
        ) from None


def check_configuration(noted: Mapping[str, Any], config: RunConfig, run: str, what: str) -> None:
    """Raise UserError unless `config` is what `noted` (see `identity`; old runs lack parts) was made under.

    run: name or folder of the run. what: says in the message how the configurations differ, and what to do.
    """
    if noted.get("config", config.fingerprint()) != config.fingerprint():
        raise UserError(f"{run} was trained under another configuration: {what}")
    if "evaluation" in noted and not config.eval.may_be(noted["evaluation"]):
        raise UserError(
            f"the best epoch of {run} was chosen by another evaluation (eval.index, or another setting of an index): "
            f"{what}"
        )


def check_data(noted: Mapping[str, Any], manifest: Manifest, run: str, path: str, advice: str) -> None:
    """Raise UserError unless the data at `path` is what `noted` was made on, its manifest included."""
    if noted.get("data", manifest.fingerprint) != manifest.fingerprint:
        raise UserError(f"{run} was trained on other data than {path} holds now; {advice}")
    if noted.get("manifest", manifest.whole_fingerprint) != manifest.whole_fingerprint:
        where = Path(path) / "manifest.json"
        raise UserError(f"{where} has changed since {run} was trained, its files have not; {advice}")


def other_versions(noted: Mapping[str, Any], now: Mapping[str, str] | None = None) -> str | None:
    """What is of another version now than when `noted` was made, in words; None where nothing is, or none is noted."""
    before, now = noted.get("versions", {}), now or versions()
    changes = [f"{name} {before[name]} (now {now[name]})" for name in now if before.get(name, now[name]) != now[name]]
    return ", ".join(changes) or None
