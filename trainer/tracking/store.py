"""MLflow's stores and errors: a SQLite store is made whole, and errors that pass are told from those that stay."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from models.errors import UserError
from retrieval.files import locked
from trainer.tracking.address import redacted, sqlite_path, sqlite_uri

_BUSY = (408, 409, 425, 429)
_MISSING = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
#: an address that cannot be parsed, too, is a plain ValueError
BUGS = (ValueError, TypeError, KeyError, AttributeError, IndexError)
#: of SQLAlchemy and Alembic: an address that is none, a dialect that is not installed, a schema of a newer MLflow
_FINAL_NAMES = ("ArgumentError", "NoSuchModuleError", "CommandError")
#: passwords of fewer letters are hidden as whole words
_SHORT = 4
_FINAL_WORDS = ("not in a valid JSON format", "out-of-date database schema", "Invalid url", "Invalid URL")


class PermanentError(Exception):
    """MLflow will never take this run as things are; the message says why and what to do."""


def make_store(uri: str) -> None:
    """Make the SQLite store of `uri`, whole or not at all, where it does not exist; nothing for any other store.

    MLflow makes its tables in some 60 migrations; a store whose maker was killed among them is refused for ever after.
    Raises PermanentError for a place where no store can be, which MLflow itself would try for minutes.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    _check_place(path)
    if path.exists():
        return
    with locked(path.parent / f".{path.name}.lock"):
        if path.exists():  # by who held the lock before
            return
        new = path.with_name(f".{path.name}.new")

        def remove() -> None:
            for left in (new, new.with_name(f"{new.name}-journal")):
                left.unlink(missing_ok=True)

        remove()  # what one that was killed has left
        try:
            MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)
        except Exception:
            remove()
            raise
        new.replace(path)


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise PermanentError(f"there is no folder {path.parent} for the store {path.name}: make it, or name another")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermanentError(f"{path} cannot be written: allow it, or name another store by tracking.uri")
    if path.is_dir():
        raise PermanentError(f"{path} is a folder, not a SQLite file: name another store by tracking.uri")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(16)
        if start and start != b"SQLite format 3\0":
            raise PermanentError(f"{path} is not a SQLite file: name another store by tracking.uri")


def permanent(error: BaseException) -> bool:
    """Whether trying again cannot help: a wrong address, a refusal, a missing driver or folder, a damaged run."""
    if isinstance(error, MlflowException):
        if error.error_code == "RESOURCE_ALREADY_EXISTS":  # made by another run at the same time
            return False
        code = error.get_http_status_code()
        return (400 <= code < 500 and code not in _BUSY) or any(words in str(error) for words in _FINAL_WORDS)
    if isinstance(error, (PermanentError, ImportError, UserError, *_MISSING)):
        return True
    return type(error) in BUGS or type(error).__name__ in _FINAL_NAMES


def unreachable(error: BaseException | None) -> bool:
    """Whether nobody answers at the address: no such host, or none that listens there."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def gone(error: MlflowException) -> bool:
    """Whether the MLflow run, or its experiment, was deleted."""
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or "must be in the 'active' state" in str(error)


def reason(error: BaseException, uri: str) -> str:
    """The error in one line, without pages of HTML, and without the password of `uri`."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, PermanentError | UserError):
        text = str(error)
    elif unreachable(error):
        text = "nobody listens there, or there is no such host"
    elif isinstance(error, ModuleNotFoundError):
        text = (
            f"the package {error.name}, which this address needs, is not installed: install it, or name another store"
        )
    elif isinstance(error, MlflowException):
        text = _explained(error, text.partition(". Response body")[0])
    text = text.replace(uri, redacted(uri))
    for secret in {*re.findall(r"://(?:[^/]*:)?(.*)@", uri)} - {""}:
        # one that is short is a part of many words, and hides only where it stands alone
        before, after = (r"(?<!\w)", r"(?!\w)") if len(secret) < _SHORT else ("", "")
        text = re.sub(f"{before}{re.escape(secret)}{after}", "***", text)
    return text[:400]


def _explained(error: MlflowException, text: str) -> str:
    code = error.get_http_status_code()
    if code in (401, 403):
        return f"access is refused ({code}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if error.error_code == "ENDPOINT_NOT_FOUND" or _FINAL_WORDS[0] in text:
        return f"what answers there is no MLflow server ({text})"
    return text
