"""Runs on object storage. The run folder is a local working folder; each committed state of it is stored as a whole.

URL/NAME has the contents of the run's files as files/SHA256, and manifest.json, which lists the files and is written
last: readers see the state before or the new one. docs/reliability.md says what that guarantees.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from cluster import console
from models.errors import UserError
from retrieval.files import digest, sole_writer, write_bytes, write_json
from trainer.data.storage import default_cache, is_url
from trainer.local_path import local_path

#: scheme -> the package that fsspec needs for it, and our optional dependencies with it; file: a disk of the network
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "file": ("fsspec", "")}
#: in a folder of runs: where they are stored; in a run's folder: the states that this folder is as new as
_PLACE, _KNOWN, _MANIFEST = ".object-storage.json", ".stored.json", "manifest.json"
_SCHEMA_VERSION, _MOST_BYTES = 1, 16 << 20
#: seconds before an operation is tried again
_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
#: what stays on this machine: the output of its workers and of its mirror to MLflow
_LOCAL = ("ray", "mlflow.log")

_Result = TypeVar("_Result")


class OutOfReachError(UserError):
    """The object storage did not do what was asked, each time it was tried."""


def runs_dir(text: str) -> Path:
    """The folder of runs that an option names; for an s3:// or gs:// URL its working folder on this machine.

    Raises ArgumentTypeError for other URLs, and where the package for this kind of URL is missing.
    """
    if not is_url(text):
        return local_path(text)
    scheme, url = text.split("://")[0], text.rstrip("/")
    if scheme not in _PACKAGES or "::" in text:
        raise argparse.ArgumentTypeError(f"{text}: runs are kept in a local folder, or at an s3:// or gs:// URL")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        package, extra = _PACKAGES[scheme]
        raise argparse.ArgumentTypeError(
            f"{text} needs the package {package}; install it with pip install 'mealrec[{extra}]'"
        ) from None
    folder = default_cache() / "runs" / digest(url)[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _PLACE, {"url": url})
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} needs a working folder, {folder}: {error.strerror}") from None
    return folder


def storage_of(run_dir: Path) -> RunStorage | None:
    """Where the run in this folder is stored; None for a run that is only local."""
    place = run_dir.parent / _PLACE
    return RunStorage(str(json.loads(place.read_bytes())["url"]), run_dir) if place.exists() else None


def bring_all(folder: Path) -> None:
    """Bring all stored runs of a folder of runs to this machine. Nothing happens for a local one."""
    beside = storage_of(folder / "any")
    for name in beside.names() if beside else []:
        if storage := storage_of(folder / name):
            storage.fetch()


class RunStorage:
    """One run on object storage, and its working folder `run_dir`, whose name is the run's."""

    def __init__(self, root: str, run_dir: Path) -> None:
        self.root, self.run_dir, self.url = root, run_dir, f"{root}/{run_dir.name}"
        # a listing that is remembered would hide what another machine has stored
        scheme = root.split("://")[0]
        options = {"auto_mkdir": True} if scheme == "file" else {"use_listings_cache": False}
        self._files = fsspec.filesystem(scheme, **options)
        self._digests: dict[tuple[str, int, int], str] = {}
        self._moves = scheme == "file"

    def begin(self, resume: bool) -> None:
        """Make sure that the place can be written. resume: bring the run; else there must be none of this name.

        Raises UserError.
        """
        probe = f"{self.root}/.probe-{secrets.token_hex(8)}"
        self._put(probe, b"probe")
        self._try(probe, lambda: self._files.rm_file(probe))
        if resume:
            self.fetch()
        elif self._manifest() is not None:
            raise UserError(f"run {self.run_dir.name!r} exists in {self.root}: use --resume, or another --name")

    def names(self) -> list[str]:
        """The names of all runs that are stored beside this one."""
        try:
            listed = self._try(self.root, lambda: self._files.ls(self.root, detail=False))
        except FileNotFoundError:
            return []
        names = sorted(PurePosixPath(str(path)).name for path in listed)
        return [name for name in names if not name.startswith(".")]

    def push(self) -> None:
        """Store the state of the folder: new contents first, each read back, then the manifest that lists all.

        Raises OutOfReachError where the storage fails, and UserError where another machine has gone on with the run.
        """
        before = self._manifest()
        if before is not None and before["id"] not in self._known():
            raise UserError(
                f"another process has gone on with the run at {self.url}; this one stops. Its own work since its last "
                f"stored checkpoint is in {self.run_dir}"
            )
        stored = {entry["sha256"] for entry in before["files"].values()} if before else set()
        entries: dict[str, dict[str, Any]] = {}
        for path in self._mine():
            sha256 = self._digest(path)
            if sha256 not in stored:
                data = path.read_bytes()  # a log may have grown since
                sha256 = digest(data)
                self._put(f"{self.url}/files/{sha256}", data)
                stored.add(sha256)
            entries[path.relative_to(self.run_dir).as_posix()] = {"sha256": sha256}
        content: dict[str, Any] = {"schema_version": _SCHEMA_VERSION, "id": secrets.token_hex(16), "files": entries}
        # known before it is stored: who reads this folder meanwhile must not take the state for another machine's
        self._know(content["id"], before["id"] if before else "")
        self._put(f"{self.url}/{_MANIFEST}", json.dumps(content, indent=1).encode())
        self._sweep(stored)  # the contents of the state before, and of this one

    def fetch(self) -> bool:
        """Bring the stored state, unless this folder is as new; return whether there is one.

        Raises UserError where the storage cannot be read, or where what it has is damaged.
        """
        manifest = self._manifest()
        if manifest is None:
            if self._known():
                raise UserError(f"there is no run at {self.url} any more; a copy of it is in {self.run_dir}")
            return False
        if manifest["id"] in self._known():
            return True
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.run_dir):
            while not self._take(manifest):
                again = self._manifest()
                if again is None or again["id"] == manifest["id"]:
                    raise UserError(f"the run at {self.url} is not whole: {_MANIFEST} lists a file that is not there")
                manifest = again  # its writer went on and removed what the older state needed
        return True

    def _take(self, manifest: Mapping[str, Any]) -> bool:
        """Make the folder what the manifest says; False if a content is gone."""
        (self.run_dir / _KNOWN).unlink(missing_ok=True)  # until all is there this folder is no state
        for path in self._mine():
            if path.relative_to(self.run_dir).as_posix() not in manifest["files"]:
                path.unlink()
        for folder in (self.run_dir / "checkpoints").glob("*"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name, entry in manifest["files"].items():
            path, sha256 = self.run_dir / name, entry["sha256"]
            if path.is_file() and self._digest(path) == sha256:
                continue
            source = f"{self.url}/files/{sha256}"
            try:
                data = self._get(source, partial(_has_digest, sha256))
            except FileNotFoundError:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        self._know(manifest["id"])
        return True

    def _mine(self) -> list[Path]:
        """The files of the folder that are stored: no hidden ones, which are locks and what is being written."""
        found = []
        for path in sorted(self.run_dir.rglob("*")):
            parts = path.relative_to(self.run_dir).parts
            if parts[0] not in _LOCAL and not any(part.startswith(".") for part in parts):
                found += [path] if path.is_file() and not path.is_symlink() else []
        return found

    def _digest(self, path: Path) -> str:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = digest(path.read_bytes())
        return self._digests[key]

    def _known(self) -> list[str]:
        path = self.run_dir / _KNOWN
        return list(json.loads(path.read_bytes())["known"]) if path.exists() else []

    def _know(self, *states: str) -> None:
        write_json(self.run_dir / _KNOWN, {"known": [state for state in states if state]})

    def _manifest(self) -> dict[str, Any] | None:
        url = f"{self.url}/{_MANIFEST}"
        try:
            data = self._get(url, lambda data: len(data) <= _MOST_BYTES)
        except FileNotFoundError:
            return None
        try:
            content = json.loads(data)
            sound = content["schema_version"] == _SCHEMA_VERSION and isinstance(content["id"], str)
            sound = sound and all(_is_plain(name, entry) for name, entry in content["files"].items())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(f"{url} is not the manifest of a run that this version can read")
        return dict(content)

    def _sweep(self, needed: set[str]) -> None:
        """Remove contents that neither the state nor the one before needs: readers may still be at that one."""
        folder = f"{self.url}/files"
        for path in self._try(folder, lambda: self._files.ls(folder, detail=False)):
            name = PurePosixPath(str(path)).name
            if re.fullmatch("[0-9a-f]{64}", name) and name not in needed:
                self._try(folder, partial(self._files.rm_file, path))

    def _put(self, url: str, data: bytes) -> None:
        def put() -> None:
            if self._moves:  # a file of a disk is not whole until it is written
                self._files.pipe_file(f"{url}.tmp", data)
                self._files.mv(f"{url}.tmp", url)
            else:
                self._files.pipe_file(url, data)
            if digest(self._files.cat_file(url)) != digest(data):
                raise OSError("what was read back is not what was written")

        self._try(url, put, absent=False)

    def _get(self, url: str, sound: Callable[[bytes], bool]) -> bytes:
        def get() -> bytes:
            data = bytes(self._files.cat_file(url))
            if not sound(data):
                raise OSError("its content is not what was stored")
            return data

        return self._try(url, get)

    def _try(self, url: str, work: Callable[[], _Result], absent: bool = True) -> _Result:
        """What `work` returns, tried again with growing delays. absent: a file that is not there is told as that."""
        for delay in (*_DELAYS, None):
            try:
                return work()
            except Exception as error:  # noqa: PERF203 -- the client of each storage has errors of its own
                if absent and isinstance(error, FileNotFoundError):
                    raise
                if delay is None:
                    raise OutOfReachError(
                        f"{url}: tried {len(_DELAYS) + 1} times without success ({type(error).__name__}: {error}). "
                        f"What this machine has of the run is in {self.run_dir}"
                    ) from error
                time.sleep(delay)
        raise AssertionError("the last try returns or raises")


def _has_digest(sha256: str, data: bytes) -> bool:
    return digest(data) == sha256


def _is_plain(name: str, entry: Mapping[str, Any]) -> bool:
    """Whether a manifest's entry is a file within the run's folder, with a hash."""
    parts = name.split("/")
    return all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part) for part in parts) and bool(
        re.fullmatch("[0-9a-f]{64}", entry["sha256"])
    )


def store_checkpoint(storage: RunStorage) -> None:
    """Store the run after a checkpoint. Storage out of reach is a warning: the next checkpoint is stored with this."""
    try:
        storage.push()
    except OutOfReachError as error:
        console.warn(f"the checkpoint is on this machine's disk only: {error}")
