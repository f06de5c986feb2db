"""Checkpoints that are complete or absent: written under a temporary name, hashed, synced, then renamed into place.

There is one writer at a time (rank 0). `checkpoint_files` lists the files. Nothing here is unpickled: tensors are
safetensors, everything else is JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from cluster import console
from models.errors import UserError
from retrieval.files import DISK, FileSystem, digest, sync_folder, write_new
from trainer.training.checkpoint_files import (
    MANIFEST,
    SCHEMA_VERSION,
    STATE,
    TENSORS,
    left_overs,
    step_folder,
    step_folders,
)

_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Checkpoint:
    """The content of the checkpoint of `step`: tensors on the CPU by group and name, and the JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint folder that must not be loaded; the message names the file and what is wrong with it."""


class CheckpointStore:
    """The checkpoints of one run, in the folder `root`. The first commit makes the folder."""

    def __init__(self, root: Path, files: FileSystem = DISK) -> None:
        self.root = root
        self._files = files

    def commit(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: Collection[int] | None = None,
    ) -> Path:
        """Write one checkpoint, completely or not at all; return its folder.

        step: at least 0; a checkpoint of the same step is replaced. tensors: by group (one file each) and name; views
        and tensors on other devices are copied. state: JSON values. keep: older steps to keep; if it is given, all
        others are removed once the new checkpoint is in place.
        If a commit fails, the earlier checkpoints can still be loaded. Raises UserError when the disk is full and
        ValueError for a bad step or group name; other errors of the system pass through.
        """
        if step < 0 or any(not _GROUP.fullmatch(group) for group in tensors):
            raise ValueError(f"bad step {step} or group name in {sorted(tensors)}")
        encoded_state = json.dumps(dict(state), indent=1).encode()
        needed = len(encoded_state) + sum(t.nbytes for group in tensors.values() for t in group.values())
        aside = self.root / f".tmp-{uuid.uuid4().hex}"
        try:
            self._write_folder(aside, step, tensors, encoded_state)
            self._put_in_place(aside, step)
            if keep is not None:
                self.prune({*keep, step})
        except OSError as error:
            # free the space; the next prune removes what cannot be removed now
            shutil.rmtree(aside, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(self._full(step, needed)) from error
            raise
        return self._folder(step)

    def latest(self) -> Checkpoint | None:
        """The checkpoint of the highest step that is whole; None if there never was one.

        Warns of damaged ones. May be called while another process commits. Raises UserError, naming a file, where
        checkpoints are there and all of them are damaged.
        """
        return self._newest(lambda checkpoint: checkpoint)

    def latest_and_best(self) -> tuple[Checkpoint, Checkpoint | None] | None:
        """As `latest`, with the best checkpoint, which the state of the latest names (`stopping.best_step`).

        The best is None before the first validation. A checkpoint whose best one is gone or damaged is passed over,
        as if it were damaged itself.
        """
        return self._newest(self._with_best)

    def _with_best(self, latest: Checkpoint) -> tuple[Checkpoint, Checkpoint | None]:
        step = int(latest.state["stopping"]["best_step"])
        if step in (-1, latest.step):
            return latest, latest if step == latest.step else None
        return latest, self._read_step(step)

    def _newest(self, complete: Callable[[Checkpoint], _Found]) -> _Found | None:
        """What `complete` makes of the checkpoint of the highest step for which it, too, raises no _DamagedError."""
        while True:
            listed, damage = self._listing(), list[str]()
            for step, folder, _ in listed:
                try:
                    found = complete(_read(folder, step))
                except _DamagedError as error:
                    if self._listing() != listed:  # a writer replaced or removed what was being read
                        break
                    damage.append(f"checkpoint of step {step} is damaged and not used: {error}")
                    continue
                for line in damage:
                    console.warn(line)
                return found
            else:
                if not damage:
                    return None
                raise UserError(
                    f"no checkpoint in {self.root} is whole, so there is nothing to go on from:\n"
                    + "\n".join(damage)
                    + "\nBring the damaged file back from a copy; or move that folder away, to train from the start"
                )

    def _listing(self) -> list[tuple[int, Path, int]]:
        """`_folders`, with a number that is another one once a writer replaced the folder or its manifest.

        Lists again when a folder was replaced before it was looked at.
        """
        while True:
            folders = self._folders()
            listing = [(step, folder, _inode(folder)) for step, folder in folders]
            if folders == self._folders():
                return listing

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`. Raises UserError if it is missing or damaged, naming the file."""
        try:
            return self._read_step(step)
        except _DamagedError as error:
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"no usable checkpoint of step {step}: {error}. Steps in {self.root}: {there}.") from None

    def _read_step(self, step: int) -> Checkpoint:
        damage = _DamagedError(f"{self._folder(step)} does not exist")
        for found, folder in self._folders():
            if found == step:
                try:
                    return _read(folder, step)
                except _DamagedError as error:
                    damage = error
        raise damage

    def steps(self) -> list[int]:
        """Steps that have a folder, in ascending order, including damaged ones."""
        return sorted({step for step, _ in self._folders()})

    def prune(self, keep: Collection[int]) -> None:
        """Remove all steps except `keep`, and folders that interrupted commits and removals left behind."""
        folders = self._folders()
        for step, folder in folders:
            superseded = folder != self._folder(step) and (step, self._folder(step)) in folders
            if step not in keep or superseded:
                self._trash(folder)
        for path in left_overs(self.root):
            self._files.remove_tree(path)

    def _write_folder(
        self, folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], encoded_state: bytes
    ) -> None:
        if not self.root.exists():
            self._files.mkdir(self.root)
            sync_folder(self.root.parent, self._files)
        self._files.mkdir(folder)
        entries = {STATE: self._write(folder / STATE, encoded_state)}
        for group, named in tensors.items():
            # copy each one: safetensors refuses tensors that share storage, such as views of a flat buffer
            own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in named.items()}
            entries[group + TENSORS] = self._write(folder / (group + TENSORS), encode_tensors(own))
        manifest = {"schema_version": SCHEMA_VERSION, "step": step, "files": entries}
        self._write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(folder, self._files)

    def _write(self, path: Path, data: bytes) -> dict[str, Any]:
        write_new(path, data, self._files)
        return {"bytes": len(data), "sha256": digest(data)}

    def _put_in_place(self, aside: Path, step: int) -> None:
        final, former = self._folder(step), self.root / f".replaced-{step:09d}"
        if final.exists():
            if former.exists():
                self._trash(former)
            self._files.rename(final, former)
        self._files.rename(aside, final)
        sync_folder(self.root, self._files)
        if former.exists():
            self._trash(former)

    def _trash(self, folder: Path) -> None:
        # rename first: a kill during the removal must not leave half a checkpoint under a name that is read
        trash = self.root / f".trash-{uuid.uuid4().hex}"
        self._files.rename(folder, trash)
        self._files.remove_tree(trash)

    def _folder(self, step: int) -> Path:
        return step_folder(self.root, step)

    def _folders(self) -> list[tuple[int, Path]]:
        return step_folders(self.root)

    def _full(self, step: int, needed: int) -> str:
        present = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(present).free
        return (
            f"no space left for the checkpoint of step {step}: it needs {needed / 1e6:.1f} MB in {self.root}, "
            f"{free / 1e6:.1f} MB are free. Earlier checkpoints are untouched: free some space, "
            "then continue with --resume."
        )


def _inode(folder: Path) -> int:
    """Of the manifest, or of the folder if it has none; 0 if there is neither, as behind a link that leads nowhere."""
    for path in (folder / MANIFEST, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_ino
    return 0


def _read(folder: Path, step: int) -> Checkpoint:
    """Read a checkpoint. Raises _DamagedError unless every file is there, with its recorded length and hash."""
    manifest_path = folder / MANIFEST
    manifest = _decode_json(manifest_path, _read_bytes(manifest_path))
    entries = manifest.get("files")
    if manifest.get("schema_version") != SCHEMA_VERSION or manifest.get("step") != step:
        raise _DamagedError(f"{manifest_path} is not of schema version {SCHEMA_VERSION} and step {step}")
    if not isinstance(entries, dict) or STATE not in entries:
        raise _DamagedError(f"{manifest_path} does not list the files")
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, entry in entries.items():
        data = _read_verified(folder, name, entry)
        if name == STATE:
            state = _decode_json(folder / name, data)
        else:
            tensors[name.removesuffix(TENSORS)] = _decode_tensors(folder / name, data)
    return Checkpoint(step, tensors, state)


def _read_verified(folder: Path, name: str, entry: object) -> bytes:
    path = folder / name
    if name != STATE and not (name.endswith(TENSORS) and _GROUP.fullmatch(name.removesuffix(TENSORS))):
        raise _DamagedError(f"{folder / MANIFEST} lists {name!r}, which is not a file of a checkpoint")
    data = _read_bytes(path)
    if not isinstance(entry, dict) or len(data) != entry.get("bytes"):
        raise _DamagedError(f"{path} has {len(data)} bytes, which is not the number in the manifest")
    if digest(data) != entry.get("sha256"):
        raise _DamagedError(f"{path} does not have the SHA-256 of the manifest")
    return data


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _DamagedError(f"{path} cannot be read: {error.strerror}") from error


def _decode_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and 200,000 brackets included
        raise _DamagedError(f"{path} is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise _DamagedError(f"{path} is not a JSON object")
    return decoded


def _decode_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(decode_tensors(data))
    except SafetensorError as error:
        raise _DamagedError(f"{path} is not a safetensors file: {error}") from error
